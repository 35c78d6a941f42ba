/*
 * What `cistern top` shows, as lines of text: composed from a watch for a terminal of any size, without
 * knowing of one. Pure.
 */
#ifndef TOOLS_TOP_PAGE_H
#define TOOLS_TOP_PAGE_H

#include <stdbool.h>

#include "tools/top/watch.h"

enum { PAGE_COLUMNS_MAX = 512, PAGE_LINES_MAX = 200, PAGE_FILTER_MAX = 40 };

enum page_style { PAGE_PLAIN, PAGE_BOLD, PAGE_HEADER, PAGE_SELECTED, PAGE_ALARM, PAGE_DIM };

/* By which column rows are sorted; the numbers largest first. */
enum page_sort {
	SORT_NAME,
	SORT_HIT,
	SORT_GETS,
	SORT_GET_P99,
	SORT_PUTS,
	SORT_PUT_P99,
	SORT_RATIO,
	SORT_RAW,
	SORT_POOL,
	SORT_STORE,
	SORT_KINDS
};

/* What the user has chosen. */
struct page_choice {
	enum page_sort sort;
	bool reversed;
	char filter[PAGE_FILTER_MAX]; /* shows rows whose namespace or model holds it; empty: all */
	bool typing;                  /* the filter is being typed */
	bool paused;
	bool help;
	uint32_t selected; /* row; cut to how many there are */
};

struct page_line {
	enum page_style style;
	char text[PAGE_COLUMNS_MAX + 1];
};

struct page {
	uint32_t n_lines;
	uint32_t n_rows; /* that pass the filter */
	struct page_line lines[PAGE_LINES_MAX];
};

/* Composes n_lines lines of n_columns. choice->selected is cut to the rows there are. connected: whether the
 * watch has a daemon; if not, why stands in its place. */
void page_compose(struct page *p, const struct watch *w, struct page_choice *choice, bool connected,
	uint32_t n_lines, uint32_t n_columns);

#endif
