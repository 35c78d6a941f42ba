/* A libcuda.so.1 that lacks most of what a driver has, as an old one would. */
int cuInit(unsigned flags);
int cuDriverGetVersion(int *version);

int cuInit(unsigned flags)
{
	return (int)flags;
}

int cuDriverGetVersion(int *version)
{
	*version = 8000;
	return 0;
}
