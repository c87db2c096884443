/*
 * The instruction sets that the cpu back end has kernels for, and opening a device on one of them.  For tests.
 */
#ifndef TESTS_CPU_PATHS_H
#define TESTS_CPU_PATHS_H

#include <stdbool.h>

#include "model/device.h"

#define CPU_PATHS 4
extern const char *const cpu_paths[CPU_PATHS];

/* Devices opened from now on use this one; false where the machine has not got it: there is nothing to test then. */
bool cpu_paths_choose(const char *path);

/* Devices opened from now on use what is best for the machine. */
void cpu_paths_forget(void);

/* A cpu device that yields the final hidden states. */
struct device *cpu_paths_open(const struct model *model, enum precision precision, size_t window, size_t threads);

#endif
