/* A configuration file from anywhere: no crash, and one that was accepted is the same after printing and reading it. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/config.h"
#include "tests/fuzz.h"

/* Read bytes as a file. */
static int load(struct config *config, const void *bytes, size_t size, struct error *err)
{
	char path[32];
	char *item[] = { path };
	const struct config_source source = { .files = { item, 1 } };
	int fd = memfd_create("mamba2d.yaml", MFD_CLOEXEC), rc;

	must(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	rc = config_load(config, &source, err);
	close(fd);
	return rc;
}

static char *print(const struct config *config, size_t *ret_size)
{
	char *text = NULL;
	FILE *file = open_memstream(&text, ret_size);

	must(file != NULL);
	config_print(config, file);
	fclose(file);
	return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct config config, again;
	struct error err = { 0 };
	char *once, *twice;
	size_t n_once, n_twice;
	int rc = load(&config, data, size, &err);

	if (rc) {
		must_explain(rc, &err);
		config_free(&config);
		return 0;
	}
	once = print(&config, &n_once);
	must(!load(&again, once, n_once, &err));
	twice = print(&again, &n_twice);
	must(n_once == n_twice && !memcmp(once, twice, n_once));
	if (config_finish(&config, &err))
		must(err.text[0] != '\0');
	free(once);
	free(twice);
	config_free(&config);
	config_free(&again);
	return 0;
}
