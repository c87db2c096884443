/* How many CPUs this process may use. */
#ifndef MODEL_CPU_COUNT_H
#define MODEL_CPU_COUNT_H

#include <stddef.h>

/* Its affinity, or its cgroup's quota if that is less; at least 1. */
size_t cpu_count(void);

/*
 * The least CPU quota, rounded, of a cgroup (version 2) and those above it.  membership is a file like
 * /proc/self/cgroup, mount where the hierarchy is mounted.  SIZE_MAX where there is no quota.
 */
size_t cpu_count_quota(const char *membership, const char *mount);

#endif
