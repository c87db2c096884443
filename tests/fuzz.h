/* What every fuzz target defines: libFuzzer calls it, and fuzz_replay.c on the kept corpus in `make check`. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "model/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void must(bool holds)
{
	if (!holds)
		abort();
}

/* A failure says so twice, and why. */
static inline void must_explain(int rc, const struct error *err)
{
	must(rc < 0 && rc == err->code && err->text[0] != '\0');
}

#endif
