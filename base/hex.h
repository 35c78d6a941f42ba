/* Bytes as hexadecimal digits, for people. Pure. */
#ifndef BASE_HEX_H
#define BASE_HEX_H

#include <stddef.h>
#include <stdint.h>

/* out: 2 n digits and a NUL. */
static inline void hex_write(const uint8_t *bytes, size_t n, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < n; i++) {
		out[2 * i] = digits[bytes[i] >> 4];
		out[2 * i + 1] = digits[bytes[i] & 15];
	}
	out[2 * n] = 0;
}

static inline int hex_digit(char c)
{
	return c >= '0' && c <= '9'   ? c - '0'
	       : c >= 'a' && c <= 'f' ? c - 'a' + 10
	       : c >= 'A' && c <= 'F' ? c - 'A' + 10
				      : -1;
}

/* Up to n bytes from text, which is digits alone; half a byte at the end is left out. Returns how many bytes;
 * -1: it is not digits, or too long. */
static inline int hex_read(const char *text, uint8_t *bytes, size_t n)
{
	size_t len = 0;

	for (; text[len]; len++)
		if (hex_digit(text[len]) < 0 || len >= 2 * n)
			return -1;
	for (size_t i = 0; i < len / 2; i++)
		bytes[i] = (uint8_t)(hex_digit(text[2 * i]) << 4 | hex_digit(text[2 * i + 1]));
	return (int)(len / 2);
}

#endif
