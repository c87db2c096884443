/* Counting CPUs: what the scheduler allows, and what containers and services are granted by quota. */
#include "model/cpu_count.h"

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MOST_PATH 4096

/* The quota of one cgroup: cpu.max is "quota period" in microseconds, or "max period". */
static size_t group_quota(const char *mount, const char *group)
{
	char path[2 * MOST_PATH];
	double quota, period;
	size_t cpus = SIZE_MAX;
	FILE *file;

	snprintf(path, sizeof path, "%s%s/cpu.max", mount, group);
	file = fopen(path, "re");
	if (!file)
		return cpus;
	if (fscanf(file, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0)
		cpus = quota > period ? (size_t)(quota / period + 0.5) : 1;
	fclose(file);
	return cpus;
}

size_t cpu_count_quota(const char *membership, const char *mount)
{
	char line[MOST_PATH];
	size_t cpus = SIZE_MAX;
	FILE *file = fopen(membership, "re");
	bool found = false;

	if (!file)
		return cpus;
	while (!found && fgets(line, sizeof line, file))
		found = !strncmp(line, "0::/", 4);
	fclose(file);
	if (!found)
		return cpus;
	line[strcspn(line, "\n")] = '\0';
	for (char *group = line + 3, *slash;; *slash = '\0') {
		const size_t here = group_quota(mount, group);

		cpus = here < cpus ? here : cpus;
		slash = strrchr(group, '/');
		if (!slash)
			return cpus;
	}
}

size_t cpu_count(void)
{
	const size_t quota = cpu_count_quota("/proc/self/cgroup", "/sys/fs/cgroup");
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof set, &set) == 0)
		cpus = CPU_COUNT(&set);
	if (cpus < 1)
		cpus = 1;
	return quota < (size_t)cpus ? quota : (size_t)cpus;
}
