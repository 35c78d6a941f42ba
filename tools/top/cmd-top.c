/* cistern top: a live view of the daemon, from its statistics page alone. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <ncurses.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tools/cistern.h"
#include "tools/top/page.h"

enum { ONCE_LINES = 24, ONCE_COLUMNS = 80 };

static const char usage[] =
	"Usage: cistern top [--socket PATH] [--interval SECONDS] [--once] [--json]\n"
	"\n"
	"Shows what the daemon does, live, by namespace and model. Reads the statistics page alone: "
	"watching\n"
	"costs the daemon nothing. Goes on when the daemon is restarted. Keys: h shows them.\n"
	"\n"
	"  -s, --socket PATH        the daemon's socket (default: $CISTERN_SOCKET, else\n"
	"                           /run/cistern/cistern.sock)\n"
	"  -i, --interval SECONDS   between two looks, 0.1 to 60 (default: 1)\n"
	"      --once               one screen as plain text, of one interval, and end\n"
	"      --json               one JSON object a look, with every statistic; with --once a single one\n"
	"      --since-start        --once, --json: figures of all time since the daemon's start\n";

struct top {
	struct watch watch;
	struct page_choice choice;
	struct page page;
	double interval_s;
	bool once, json, since_start;
	bool connected;
};

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- without a terminal ---- */

static void sleep_s(double seconds)
{
	struct timespec t = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - floor(seconds)) * 1e9)};

	nanosleep(&t, NULL);
}

static int fail(const struct top *t)
{
	fprintf(stderr, "cistern top: %s\n", t->watch.why);
	return EXIT_FAILURE;
}

static void print_page(struct top *t)
{
	page_compose(&t->page, &t->watch, &t->choice, true, ONCE_LINES, ONCE_COLUMNS);
	/* Without the line of keys, and no empty lines before it. */
	for (uint32_t i = 0; i + 1 < t->page.n_lines; i++)
		if (t->page.lines[i].text[0])
			puts(t->page.lines[i].text);
}

static int run_plain(struct top *t)
{
	if (watch_look(&t->watch))
		return fail(t);
	do {
		if (!t->since_start)
			sleep_s(t->interval_s);
		if (watch_look(&t->watch))
			return fail(t);
		if (t->since_start)
			watch_since_start(&t->watch);
		if (t->json) {
			json_t *object = watch_json(&t->watch);

			/* A line each, for programs that read them as they come. */
			json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
			json_decref(object);
			putchar('\n');
			if (fflush(stdout))
				return EXIT_FAILURE;
		} else {
			print_page(t);
		}
		if (!t->once && t->since_start)
			sleep_s(t->interval_s);
	} while (!t->once);
	return EXIT_SUCCESS;
}

/* ---- on a terminal ---- */

static void start_screen(void)
{
	cbreak();
	noecho();
	nonl();
	keypad(stdscr, TRUE);
	nodelay(stdscr, TRUE);
	set_escdelay(25);
	curs_set(0);
	if (has_colors()) {
		start_color();
		use_default_colors();
		init_pair(1, COLOR_RED, -1);
	}
}

static int attribute_of(enum page_style style)
{
	switch (style) {
	case PAGE_BOLD: return A_BOLD;
	case PAGE_HEADER: return A_REVERSE;
	case PAGE_SELECTED: return A_STANDOUT;
	case PAGE_ALARM: return A_BOLD | COLOR_PAIR(1);
	case PAGE_DIM: return A_DIM;
	default: return A_NORMAL;
	}
}

static void draw(struct top *t)
{
	int rows, columns;

	getmaxyx(stdscr, rows, columns);
	page_compose(&t->page, &t->watch, &t->choice, t->connected, (uint32_t)rows, (uint32_t)columns);
	erase();
	for (uint32_t i = 0; i < t->page.n_lines; i++) {
		const struct page_line *l = &t->page.lines[i];
		const bool whole = l->style == PAGE_HEADER || l->style == PAGE_SELECTED;

		attrset(attribute_of(l->style));
		mvaddnstr((int)i, 0, l->text, columns);
		if (whole)
			mvchgat((int)i, 0, -1, (attr_t)attribute_of(l->style), 0, NULL);
	}
	attrset(A_NORMAL);
	refresh();
}

static void type_filter(struct page_choice *c, int key)
{
	const size_t len = strlen(c->filter);

	if (key == '\r' || key == '\n' || key == KEY_ENTER) {
		c->typing = false;
	} else if (key == 27) {
		c->typing = false;
		c->filter[0] = 0;
	} else if (key == KEY_BACKSPACE || key == 127 || key == '\b') {
		if (len)
			c->filter[len - 1] = 0;
	} else if (key >= ' ' && key < 127 && len + 1 < sizeof c->filter) {
		c->filter[len] = (char)key;
		c->filter[len + 1] = 0;
	}
}

static void move_selection(struct top *t, long by)
{
	const long last = (long)t->page.n_rows - 1;
	long to = (long)t->choice.selected + by;

	to = to > last ? last : to;
	t->choice.selected = (uint32_t)(to < 0 ? 0 : to);
}

/* False: quit. */
static bool take_key(struct top *t, int key)
{
	struct page_choice *c = &t->choice;

	if (c->typing) {
		type_filter(c, key);
		return true;
	}
	switch (key) {
	case 'q': return false;
	case 's': c->sort = (c->sort + 1) % SORT_KINDS; break;
	case 'S': c->sort = (c->sort + SORT_KINDS - 1) % SORT_KINDS; break;
	case 'r': c->reversed = !c->reversed; break;
	case '/':
		c->typing = true;
		c->filter[0] = 0;
		break;
	case 'p': c->paused = !c->paused; break;
	case 'h':
	case '?': c->help = !c->help; break;
	case 27: c->help = false; break;
	case '+': t->interval_s = fmin(t->interval_s * 2, 60); break;
	case '-': t->interval_s = fmax(t->interval_s / 2, 0.1); break;
	case KEY_UP: move_selection(t, -1); break;
	case KEY_DOWN: move_selection(t, 1); break;
	case KEY_PPAGE: move_selection(t, -10); break;
	case KEY_NPAGE: move_selection(t, 10); break;
	default: break;
	}
	return true;
}

static volatile sig_atomic_t ended;

static void on_end(int signal)
{
	(void)signal;
	ended = 1;
}

static void watch_terminal(struct top *t)
{
	struct pollfd terminal = {.fd = STDIN_FILENO, .events = POLLIN};
	double next_s = now_s();
	int key;

	while (!ended) {
		double left_s = next_s - now_s();

		if (left_s <= 0) {
			if (!t->choice.paused)
				t->connected = !watch_look(&t->watch);
			next_s = now_s() + t->interval_s;
			draw(t);
			continue;
		}
		terminal.revents = 0;
		poll(&terminal, 1, (int)(left_s * 1000) + 1);
		if (terminal.revents & (POLLHUP | POLLERR | POLLNVAL))
			return; /* the terminal has gone */
		/* Also when poll was interrupted: a change of the window's size comes as a key. */
		while ((key = getch()) != ERR) {
			if (!take_key(t, key))
				return;
			draw(t);
		}
	}
}

static int run_screen(struct top *t)
{
	const struct sigaction action = {.sa_handler = on_end};
	SCREEN *screen;

	if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
		fputs("cistern top: this is no terminal; --once and --json do without\n", stderr);
		return EXIT_USAGE;
	}
	t->connected = !watch_look(&t->watch);
	if (!t->connected && !t->watch.view.header)
		return fail(
			t); /* a daemon that was never there is a mistake; one that went away comes back */
	screen = newterm(NULL, stdout, stdin);
	if (!screen) {
		fputs("cistern top: $TERM names no terminal that can be drawn on; --once does without\n",
			stderr);
		return EXIT_FAILURE;
	}
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	start_screen();
	watch_terminal(t);
	endwin();
	delscreen(screen);
	return EXIT_SUCCESS;
}

static bool parse_interval(const char *text, double *out)
{
	char *end;
	const double value = strtod(text, &end);

	if (end == text || *end || !(value >= 0.1 && value <= 60))
		return false;
	*out = value;
	return true;
}

int cmd_top(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
		{"interval", required_argument, NULL, 'i'}, {"once", no_argument, NULL, 'o'},
		{"json", no_argument, NULL, 'j'}, {"since-start", no_argument, NULL, 'a'},
		{"help", no_argument, NULL, 'h'}, {0}};
	static struct top t = {.interval_s = 1};
	const char *socket = NULL;
	int option, status;

	optind = 1;
	while ((option = getopt_long(argc, argv, "s:i:", options, NULL)) != -1)
		switch (option) {
		case 's': socket = optarg; break;
		case 'i':
			if (!parse_interval(optarg, &t.interval_s)) {
				fprintf(stderr, "cistern top: --interval %s: not 0.1 to 60 seconds\n",
					optarg);
				return EXIT_USAGE;
			}
			break;
		case 'o': t.once = true; break;
		case 'j': t.json = true; break;
		case 'a': t.since_start = true; break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: fputs(usage, stderr); return EXIT_USAGE;
		}
	if (optind != argc || (t.since_start && !t.once && !t.json)) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	watch_init(&t.watch, socket);
	status = t.once || t.json ? run_plain(&t) : run_screen(&t);
	watch_fini(&t.watch);
	return status;
}
