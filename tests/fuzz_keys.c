/* A key file from anywhere: no crash, and a key that was accepted is one, and is written as it was read. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/keys.h"
#include "tests/fuzz.h"

static void must_be_key(const char *text)
{
	unsigned char key[KEY_BYTES];
	char again[KEY_TEXT];

	must(keys_parse(text, key));
	keys_format(key, again);
	must(!strcmp(again, text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("key", MFD_CLOEXEC), rc;
	struct key_pair pair;
	struct error err = { 0 };
	char path[32];

	must(fd >= 0 && write(fd, data, size) == (ssize_t)size && !fchmod(fd, 0600));
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	rc = keys_read_secret(path, &pair, &err);
	if (rc) {
		must_explain(rc, &err);
	} else {
		must_be_key(pair.secret_key);
		must_be_key(pair.public_key);
	}
	rc = keys_read_public(path, pair.public_key, &err);
	if (rc)
		must_explain(rc, &err);
	else
		must_be_key(pair.public_key);
	close(fd);
	return 0;
}
