/*
 * From captures to a transform: reads the files, undoes the keys' rotation, feeds policy/calibrate.h one
 * layer group at a time, then encodes some of the chunks with what was learned, counts the levels, and makes
 * tables and steps of that. Blocking; one thread. The same captures give the same bytes when OpenBLAS runs on
 * one thread.
 */
#ifndef TOOLS_CALIBRATION_H
#define TOOLS_CALIBRATION_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "policy/calibrate.h"
#include "tools/capture.h"

struct calibration_options {
	struct calibrate_options calibrate;
	struct capture_options capture;
	/* Tokens at lower positions do not take part: service keeps them raw (attention sinks), and their odd
	 * values would bend the basis. */
	uint64_t skip_positions;
	/* What lies so close before a query is raw in service, too: what attention it gets says nothing. */
	uint32_t window_tokens;
	int no_metric;    /* let all features count alike, even if the captures have queries */
	const char *note; /* for the file's metadata, or NULL */
};

struct calibration {
	struct geometry geometry;
	struct calibrate_report report;
	uint64_t n_skipped; /* tokens under skip_positions */
	uint64_t n_queries; /* that the metric was learned from; 0: all features count alike */
	void *data;         /* the serialised transform, malloc'd */
	size_t len;
};

/* The default calibrate_options, no note, the first 4 positions skipped, a window of 128. */
void calibration_options_init(struct calibration_options *o);

/* -EINVAL, -EBADMSG, -ENODATA with a sentence in why, that names the capture at fault if there is one; -errno
 * of a file, too. out is written on success only; its data is the caller's. */
int calibration_run(const struct kernels *kernels, const struct calibration_options *options,
	char *const *paths, size_t n_paths, struct calibration *out, char *why, size_t why_len);

#endif
