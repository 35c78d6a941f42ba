// The public header is C++ as well: it compiles, links, and means the same.
#include "shm/cistern.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

int main()
{
	cistern_options options = {};
	cistern *c = nullptr;
	cistern_key root, keys[2];
	const uint32_t tokens[3] = {1, 2, 3};

	options.socket_path = "/nonexistent/socket";
	if (cistern_connect(&options, &c) != -ENOENT || c ||
		!std::strstr(cistern_error(nullptr), "/nonexistent")) {
		std::puts("cistern_connect does not say that there is no daemon");
		return 1;
	}
	cistern_key_root(nullptr, 0, &root);
	if (cistern_key_chain(&root, tokens, 3, 2, keys) != 2 || sizeof(cistern_key) != 32 ||
		sizeof(cistern_completion) != 32 || CISTERN_MORE != 1) {
		std::puts("a struct or a constant differs between the languages");
		return 1;
	}
	return 0;
}
