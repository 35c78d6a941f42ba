/* `cisternd --check-config`: what would keep the daemon from starting with a configuration, or from doing
 * what it says, found without starting: one line a finding, on a stream for people. Reads files, changes
 * nothing. */
#ifndef RUNTIME_DAEMON_CHECK_H
#define RUNTIME_DAEMON_CHECK_H

#include <stdio.h>

#include "runtime/config.h"

/* Returns how many findings are errors (the others are warnings). */
uint32_t check_config(const struct config *c, FILE *out);

#endif
