/* Numbers for narrow columns: at most five characters, whatever the size. Each writes into out and returns
 * it. */
#ifndef TOOLS_TOP_UNITS_H
#define TOOLS_TOP_UNITS_H

#include <stdint.h>

enum { UNITS_TEXT = 8 };

const char *units_bytes(double n, char out[UNITS_TEXT]);                  /* powers of 1024: 17.3G */
const char *units_count(double n, char out[UNITS_TEXT]);                  /* powers of 1000: 1.2k; 0.3 */
const char *units_ns(uint64_t ns, char out[UNITS_TEXT]);                  /* 4.1ms; "-" for 0 */
const char *units_share(double part, double whole, char out[UNITS_TEXT]); /* 97%; "-" of nothing */

#endif
