/*
 * Hit ratios of eviction policies on one made-up trace (trace.h), at several sizes of the cache. A request
 * wants a chain of chunks and is served from its start up to the first that is not there; the rest is
 * computed and put. Hits are chunks served, over chunks wanted. The limit is what could be known with the
 * future at hand: Belady's rule, the chunk that is wanted farthest in the future goes (of equals the
 * deepest), and what would go first is not taken in.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/evict.h"
#include "tools/bench-evict/trace.h"
#include "tools/bench.h"
#include "tools/cistern.h"

static const char usage[] =
	"Usage: cistern bench evict [--json] [--requests N] [--seed N] [--tenants N] [--documents SHARE]\n"
	"\n"
	"How often a chunk that is wanted is still there: LRU, FIFO, S3-FIFO, Cistern's own policy, and "
	"Belady's\n"
	"rule as the limit, on one generated trace of conversations, shared prompts and documents read "
	"once.\n"
	"\n"
	"      --requests N       requests in the trace (default 20000)\n"
	"      --seed N           of the trace (default 1)\n"
	"      --tenants N        with prompts of their own (default 8)\n"
	"      --documents SHARE  share of requests that are documents read once, 0 to 0.9 (default 0.1)\n"
	"      --json             one JSON object\n";

enum { LRU, FIFO, S3_FIFO, CISTERN, BELADY, N_POLICIES };
static const char *const names[N_POLICIES] = {"lru", "fifo", "s3_fifo", "cistern", "belady"};

static const double shares[] = {0.01, 0.02, 0.05, 0.1, 0.2};
enum { N_SHARES = sizeof shares / sizeof shares[0] };

/* A use that Belady's rule may choose to forgo. */
struct future {
	uint32_t at, depth, chunk;
};

struct simulation {
	const struct trace *trace;
	uint32_t capacity;
	int policy;
	struct evict_node *nodes; /* [n_chunks + 1] */
	struct evict_list list;   /* LRU, FIFO; S3_FIFO: the main queue */
	struct evict evict;       /* CISTERN */
	/* S3_FIFO, as its paper has it */
	struct evict_list small;
	uint8_t *n_uses; /* [n_chunks + 1] */
	bool *is_small;
	uint32_t *dropped_at; /* 0: not among the ghosts */
	uint32_t n_dropped;
	uint32_t *chain; /* the request's, from its start */
	/* BELADY */
	bool *present;
	uint32_t n_present;
	uint32_t *uses, *first_use, *cursor; /* uses of chunk c: uses[first_use[c]] on; cursor: the next */
	struct future *heap;
	size_t n_heap;
};

static struct evict_node *node(void *owner, uint32_t id)
{
	return &((struct simulation *)owner)->nodes[id];
}

static uint64_t bytes(void *owner, uint32_t id)
{
	(void)owner;
	(void)id;
	return 1;
}

static uint64_t hash(void *owner, uint32_t id)
{
	(void)owner;
	return id * 0x9e3779b97f4a7c15u;
}

static uint32_t parent(void *owner, uint32_t id)
{
	return ((struct simulation *)owner)->trace->chunks[id].parent;
}

static struct evict_items items_of(struct simulation *s)
{
	return (struct evict_items){.node = node, .bytes = bytes, .hash = hash, .parent = parent, .owner = s};
}

/* ---- Belady ---- */

static bool sooner(const struct future *a, const struct future *b)
{
	return a->at != b->at ? a->at < b->at : a->depth < b->depth;
}

static void heap_push(struct simulation *s, struct future f)
{
	size_t i = s->n_heap++;

	for (; i && sooner(&s->heap[(i - 1) / 2], &f); i = (i - 1) / 2)
		s->heap[i] = s->heap[(i - 1) / 2];
	s->heap[i] = f;
}

static struct future heap_pop(struct simulation *s)
{
	const struct future top = s->heap[0], last = s->heap[--s->n_heap];
	size_t i = 0;

	for (size_t k = 1; k < s->n_heap; k = 2 * i + 1) {
		if (k + 1 < s->n_heap && sooner(&s->heap[k], &s->heap[k + 1]))
			k++;
		if (!sooner(&last, &s->heap[k]))
			break;
		s->heap[i] = s->heap[k];
		i = k;
	}
	s->heap[i] = last;
	return top;
}

static uint32_t next_use(const struct simulation *s, uint32_t chunk)
{
	return s->cursor[chunk] < s->first_use[chunk + 1] ? s->uses[s->cursor[chunk]] : UINT32_MAX;
}

/* The chunk was used now, or has come: its next use counts from here. */
static void belady_use(struct simulation *s, uint32_t chunk)
{
	s->cursor[chunk]++;
	if (!s->present[chunk]) {
		s->present[chunk] = true;
		s->n_present++;
	}
	heap_push(s, (struct future){next_use(s, chunk), s->trace->chunks[chunk].depth, chunk});
	while (s->n_present > s->capacity) {
		const struct future f = heap_pop(s);

		/* Others are left over from earlier uses. */
		if (s->present[f.chunk] && f.at == next_use(s, f.chunk)) {
			s->present[f.chunk] = false;
			s->n_present--;
		}
	}
}

static bool belady_prepare(struct simulation *s)
{
	const struct trace *t = s->trace;

	s->present = calloc(t->n_chunks + 1, sizeof *s->present);
	s->uses = calloc(t->n_wanted, sizeof *s->uses);
	s->first_use = calloc(t->n_chunks + 2, sizeof *s->first_use);
	s->cursor = calloc(t->n_chunks + 2, sizeof *s->cursor);
	s->heap = calloc(t->n_wanted, sizeof *s->heap);
	if (!s->present || !s->uses || !s->first_use || !s->cursor || !s->heap)
		return false;
	for (uint32_t r = 0; r < t->n_requests; r++)
		for (uint32_t c = t->requests[r]; c; c = t->chunks[c].parent)
			s->first_use[c + 1]++;
	for (uint32_t c = 1; c <= t->n_chunks + 1; c++)
		s->first_use[c] += s->first_use[c - 1];
	memcpy(s->cursor, s->first_use, (t->n_chunks + 2) * sizeof *s->cursor);
	for (uint32_t r = 0; r < t->n_requests; r++)
		for (uint32_t c = t->requests[r]; c; c = t->chunks[c].parent)
			s->uses[s->cursor[c]++] = r;
	memcpy(s->cursor, s->first_use, (t->n_chunks + 2) * sizeof *s->cursor);
	return true;
}

/* ---- S3-FIFO ---- */

static void s3_move(struct simulation *s, uint32_t chunk, struct evict_list *from, struct evict_list *to)
{
	const struct evict_items items = items_of(s);

	evict_list_remove(from, &items, chunk);
	if (to)
		evict_list_add(to, &items, chunk);
	s->is_small[chunk] = false;
}

static void s3_evict(struct simulation *s)
{
	for (;;) {
		const bool small = s->small.n > s->capacity / 10 || !s->list.n;
		const uint32_t chunk = small ? s->small.oldest : s->list.oldest;

		if (small && s->n_uses[chunk] > 1) {
			s3_move(s, chunk, &s->small, &s->list);
			s->n_uses[chunk] = 0;
		} else if (small) {
			s3_move(s, chunk, &s->small, NULL);
			s->dropped_at[chunk] = ++s->n_dropped;
			return;
		} else if (s->n_uses[chunk]) {
			s->n_uses[chunk]--;
			s3_move(s, chunk, &s->list, &s->list);
		} else {
			s3_move(s, chunk, &s->list, NULL);
			return;
		}
	}
}

static void s3_take_in(struct simulation *s, uint32_t chunk)
{
	const struct evict_items items = items_of(s);
	const bool ghost =
		s->dropped_at[chunk] && s->n_dropped - s->dropped_at[chunk] < s->capacity - s->capacity / 10;

	if (s->small.n + s->list.n == s->capacity)
		s3_evict(s);
	s->n_uses[chunk] = 0;
	s->dropped_at[chunk] = 0;
	s->is_small[chunk] = !ghost;
	evict_list_add(ghost ? &s->list : &s->small, &items, chunk);
}

static bool s3_prepare(struct simulation *s)
{
	const size_t n = (size_t)s->trace->n_chunks + 1;

	s->n_uses = calloc(n, sizeof *s->n_uses);
	s->is_small = calloc(n, sizeof *s->is_small);
	s->dropped_at = calloc(n, sizeof *s->dropped_at);
	return s->n_uses && s->is_small && s->dropped_at;
}

/* ---- all of them ---- */

static bool is_in(const struct simulation *s, uint32_t chunk)
{
	return s->policy == BELADY ? s->present[chunk] : s->nodes[chunk].queue != EVICT_OUT;
}

static void renew(struct simulation *s, uint32_t chunk)
{
	const struct evict_items items = items_of(s);

	evict_list_remove(&s->list, &items, chunk);
	evict_list_add(&s->list, &items, chunk);
}

static void take_in(struct simulation *s, uint32_t chunk)
{
	const struct evict_items items = items_of(s);

	if (s->policy == LRU || s->policy == FIFO) {
		if (s->list.n == s->capacity)
			evict_list_remove(&s->list, &items, s->list.oldest);
		evict_list_add(&s->list, &items, chunk);
		return;
	}
	if (s->policy == S3_FIFO) {
		s3_take_in(s, chunk);
		return;
	}
	if (evict_count(&s->evict) == s->capacity)
		evict_dropped(&s->evict, evict_victim(&s->evict, NULL, NULL));
	evict_insert(&s->evict, chunk);
}

/* Serves one request; how many chunks of it were there. */
static uint32_t serve(struct simulation *s, uint32_t leaf)
{
	const uint32_t n = s->trace->chunks[leaf].depth;
	uint32_t n_hits = 0;

	for (uint32_t i = n, c = leaf; i--; c = s->trace->chunks[c].parent)
		s->chain[i] = c;
	while (n_hits < n && is_in(s, s->chain[n_hits]))
		n_hits++;
	if (s->policy == BELADY) {
		for (uint32_t i = 0; i < n; i++)
			belady_use(s, s->chain[i]);
		return n_hits;
	}
	for (uint32_t i = 0; i < n_hits; i++) {
		if (s->policy == CISTERN)
			evict_touch(&s->evict, s->chain[i]);
		else if (s->policy == S3_FIFO && s->n_uses[s->chain[i]] < 3)
			s->n_uses[s->chain[i]]++;
	}
	for (uint32_t i = n_hits; i < n; i++)
		if (!is_in(s, s->chain[i]))
			take_in(s, s->chain[i]);
	/* The start of the chain is to be the youngest of it. */
	for (uint32_t i = n; i-- && s->policy == LRU;)
		if (is_in(s, s->chain[i]))
			renew(s, s->chain[i]);
	return n_hits;
}

/* The hit ratio, or a negative errno value. */
static double simulate(const struct trace *t, int policy, uint32_t capacity)
{
	struct simulation s = {.trace = t, .capacity = capacity, .policy = policy};
	const struct evict_items items = items_of(&s);
	uint64_t n_hits = 0;
	double ratio = -ENOMEM;

	s.nodes = calloc(t->n_chunks + 1, sizeof *s.nodes);
	s.chain = calloc(t->n_chunks, sizeof *s.chain);
	if (s.nodes && s.chain && evict_init(&s.evict, &items, capacity) == 0 &&
		(policy != BELADY || belady_prepare(&s)) && (policy != S3_FIFO || s3_prepare(&s))) {
		for (uint32_t r = 0; r < t->n_requests; r++)
			n_hits += serve(&s, t->requests[r]);
		ratio = (double)n_hits / (double)t->n_wanted;
	}
	evict_fini(&s.evict);
	free(s.nodes);
	free(s.chain);
	free(s.n_uses);
	free(s.is_small);
	free(s.dropped_at);
	free(s.present);
	free(s.uses);
	free(s.first_use);
	free(s.cursor);
	free(s.heap);
	return ratio;
}

static int report(const struct trace *t, const struct trace_options *o, bool json)
{
	json_t *sizes = json_array();

	if (!json)
		printf("%u requests for %llu chunks, %u different ones: %u conversations, %u documents, %u "
		       "tenants, seed "
		       "%u\nchunks served, of those wanted\n\n%10s %8s",
			t->n_requests, (unsigned long long)t->n_wanted, t->n_chunks, t->n_conversations,
			t->n_documents, o->n_tenants, o->seed, "capacity", "of all");
	for (int p = 0; p < N_POLICIES && !json; p++)
		printf(" %8s", names[p]);
	for (int i = 0; i < N_SHARES; i++) {
		const uint32_t capacity = (uint32_t)(shares[i] * t->n_chunks) + 1;
		json_t *row = json_pack("{s:i, s:f}", "capacity_chunks", (int)capacity, "share", shares[i]);

		if (!json)
			printf("\n%10u %8.2f", capacity, shares[i]);
		for (int p = 0; p < N_POLICIES; p++) {
			const double ratio = simulate(t, p, capacity);

			if (ratio < 0) {
				json_decref(row);
				json_decref(sizes);
				return (int)ratio;
			}
			json_object_set_new(row, names[p], json_real(ratio));
			if (!json)
				printf(" %8.4f", ratio);
		}
		json_array_append_new(sizes, row);
	}
	if (json)
		print_json(
			json_pack("{s:i, s:I, s:i, s:i, s:i, s:i, s:i, s:O}", "requests", (int)t->n_requests,
				"chunks_wanted", (json_int_t)t->n_wanted, "chunks", (int)t->n_chunks,
				"conversations", (int)t->n_conversations, "documents", (int)t->n_documents,
				"tenants", (int)o->n_tenants, "seed", (int)o->seed, "hit_ratios", sizes));
	else
		putchar('\n');
	json_decref(sizes);
	return 0;
}

static bool parse(const char *text, uint32_t min, uint32_t max, uint32_t *out)
{
	char *end;
	unsigned long long value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || value < min || value > max)
		return false;
	*out = (uint32_t)value;
	return true;
}

int bench_evict(int argc, char **argv)
{
	static const struct option options[] = {{"json", no_argument, NULL, 'j'},
		{"requests", required_argument, NULL, 'r'}, {"seed", required_argument, NULL, 's'},
		{"tenants", required_argument, NULL, 't'}, {"documents", required_argument, NULL, 'd'},
		{"help", no_argument, NULL, 'h'}, {0}};
	struct trace_options o = {.seed = 1, .n_requests = 20000, .n_tenants = 8, .document_share = 0.1};
	struct trace t;
	bool json = false, good = true;
	char *end;
	int option, r;

	optind = 1;
	while (good && (option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'j': json = true; break;
		case 'r': good = parse(optarg, 1, 1000000, &o.n_requests); break;
		case 's': good = parse(optarg, 0, INT32_MAX, &o.seed); break;
		case 't': good = parse(optarg, 1, 1000, &o.n_tenants); break;
		case 'd':
			o.document_share = strtod(optarg, &end);
			good = end != optarg && !*end && o.document_share >= 0 && o.document_share <= 0.9;
			break;
		case 'h': fputs(usage, stdout); return EXIT_SUCCESS;
		default: good = false; break;
		}
	if (!good || optind != argc) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	r = trace_make(&o, &t);
	if (r == 0) {
		r = report(&t, &o, json);
		trace_free(&t);
	}
	if (r < 0) {
		fprintf(stderr, "cistern bench evict: %s\n", strerror(-r));
		return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
