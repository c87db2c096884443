/* An array file from anywhere, as mamba2ctl takes them: no crash, and all of one that was accepted can be read. */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/npy.h"
#include "tests/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("array.npy", MFD_CLOEXEC), rc;
	struct npy npy = { .map = NULL };
	struct error err = { 0 };
	char path[32];

	must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	rc = npy_open(path, &npy, &err);
	if (rc) {
		must_explain(rc, &err);
	} else {
		const size_t bytes = npy.rows * (npy.columns ? npy.columns : 1) * dtype_size(npy.dtype);
		const unsigned char *first = npy.data, *map = npy.map;

		must(npy.converted || (first >= map && bytes <= npy.map_size &&
				       (size_t)(first - map) <= npy.map_size - bytes));
		must(npy.converted || bytes <= size);
		for (size_t i = 0; npy.converted && i < npy.rows; i++)
			must(dtype_token(npy.dtype, npy.data, i) >= 0);
	}
	npy_close(&npy);
	close(fd);
	return 0;
}
