/* A picture of one chunk's decisions, as SVG: sink scores over positions, by layer, classes, bits for each
 * value. */
#ifndef TOOLS_PLOT_H
#define TOOLS_PLOT_H

#include <jansson.h>

/* inspection: what the daemon answers to "inspect", or {"frame": ...} of a file. -errno of the file;
 * -ENODATA: there is nothing to draw. */
int plot_inspection(const json_t *inspection, const char *path);

#endif
