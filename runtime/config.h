/*
 * The daemon's configuration: an INI file (inih), checked whole before anything is used. Immutable after
 * loading.
 */
#ifndef RUNTIME_CONFIG_H
#define RUNTIME_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "policy/fields.h"

/* device=, beside an ordinal. */
enum { CONFIG_DEVICE_NONE = -2, CONFIG_DEVICE_AUTO = -1 };

enum { CONFIG_NAMESPACES_MAX = 64, CONFIG_UIDS_MAX = 16, CONFIG_PATH_MAX = 256, CONFIG_TRANSFORMS_MAX = 64 };

struct config_namespace {
	char name[64];
	uid_t uids[CONFIG_UIDS_MAX]; /* who may attach; none listed: the daemon's own uid and root */
	uint32_t n_uids;
	bool any_uid;
	uint64_t pool_quota, store_quota; /* bytes; 0: none of its own */
	bool declared;                    /* it has a section of its own (or is "default") */
	struct policy policy;             /* complete: [policy], and over it [policy NAME] */
	uint64_t policy_own;              /* bit i: [policy NAME] sets field i of policy_fields() */
};

struct config_learn {
	bool enabled;           /* default no */
	uint32_t first_tokens;  /* default 4096 */
	uint32_t cpu_percent;   /* of one core; default 25 */
	bool only_idle;         /* default yes */
	uint32_t drift_percent; /* default 5 */
	uint64_t memory_bytes;  /* memory=; default 4 GiB */
	uint32_t versions;      /* of one model; default 8 */
};

struct config {
	char path[CONFIG_PATH_MAX]; /* of the file it was read from; empty: none */
	/* [daemon] */
	char socket[100];      /* path; default /run/cistern/cistern.sock */
	uint32_t chunk_tokens; /* default 256 */
	uint32_t workers;      /* encode and decode threads; 0: one per CPU */
	uint32_t spin_us; /* how long the front thread polls rings after work before it sleeps; default 0 */
	uint32_t max_clients;      /* default 64 */
	uint32_t max_requests;     /* in flight of one connection; default 1024 */
	uint64_t max_memory_bytes; /* max_memory=; registered by one connection; default 1 TiB */
	uint32_t upkeep_percent;   /* of one core's time, for chunks that are kept; default 25 */
	char backend[8];           /* auto, host */
	int device;              /* CONFIG_DEVICE_AUTO (default), _NONE, or the driver's ordinal of the GPU */
	uint64_t device_pool;    /* bytes of its memory for encoded chunks; 0 (default): none */
	uint64_t device_staging; /* bytes, at most; default 512 MiB */
	uint32_t device_share;   /* percent of its time for encoding; default 10 */
	uint64_t device_max_mapped; /* device_map=; engines' memory that is mapped at a time; default 1 TiB */
	uint32_t log_level;
	uid_t admins[CONFIG_UIDS_MAX]; /* who may give commands, beside root and the daemon's own user */
	uint32_t n_admins;
	char policy_file[CONFIG_PATH_MAX]; /* [policy] sections that are read after, and `cistern policy save`
					      writes; empty: none */
	uint64_t shadow_bytes; /* shadow_memory=; for originals that are kept beside their frames; default 256
				  MiB */
	/* [pool] */
	uint64_t pool_bytes; /* size=; default 1 GiB */
	/* [store] */
	char store_dir[CONFIG_PATH_MAX]; /* path=; empty: no store */
	uint64_t store_bytes;            /* size=; default 16 GiB */
	uint64_t segment_bytes;          /* segment_size=; default 0: by the store's size */
	/* [metrics] listen=, as address_parse takes it; empty: none */
	char metrics_listen[100];
	/* [transforms] path= may be given several times: files made by `cistern calibrate` */
	char transforms[CONFIG_TRANSFORMS_MAX][CONFIG_PATH_MAX];
	uint32_t n_transforms;
	/* [learn] */
	struct config_learn learn;
	/* [policy]: of namespaces that say nothing else */
	struct policy policy;
	/* [namespace NAME] uids=: user ids, or any; [policy NAME] */
	struct config_namespace namespaces[CONFIG_NAMESPACES_MAX]; /* always holds "default" */
	uint32_t n_namespaces;
};

void config_init(struct config *c);

/* The namespace of this name; NULL: there is none. */
const struct config_namespace *config_namespace(const struct config *c, const char *name);

/* Reads path; what it does not set has its default. On failure c is untouched and why says "FILE:LINE:
 * [section] key: what is wrong" in one line. -EINVAL, -errno of the file. Sizes take K, M, G, T (powers of
 * 1024). Unknown sections and keys are errors.
 */
int config_load(const char *path, struct config *c, char *why, size_t why_len);

#endif
