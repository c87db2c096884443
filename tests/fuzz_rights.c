/* A file of authorised keys from anywhere: no crash, and nobody has a right that no line gave. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/rights.h"
#include "protocol/endpoint.h"
#include "tests/fuzz.h"

static void look_at(const struct rights *rights, unsigned user, enum right right)
{
	size_t n;
	const struct prefix *prefix = rights_prefixes(rights, user, right, &n);

	must(!n || rights_known(rights, user));
	for (size_t i = 0; i < n; i++) {
		unsigned char id[MESSAGE_STREAM_MAX + 1] = { 0 };

		must(prefix[i].size <= MESSAGE_STREAM_MAX);
		memcpy(id, prefix[i].bytes, prefix[i].size);
		must(rights_allow(rights, user, right, id, prefix[i].size + 1));
	}
	must(n || !rights_allow(rights, user, right, "x", 1));
}

/* Read the file at path after old, and look at every user's rights. */
static int read_rights(const char *path, const struct rights *old, struct rights **ret_rights, struct error *err)
{
	int rc = rights_read(path, old, ret_rights, err);

	if (rc)
		return rc;
	must(rights_count(*ret_rights) <= rights_users(*ret_rights));
	for (unsigned user = 1; user <= rights_users(*ret_rights); user++)
		for (int right = 0; right < N_RIGHTS; right++)
			look_at(*ret_rights, user, (enum right)right);
	must(!rights_allow(*ret_rights, ENDPOINT_NOBODY, RIGHT_READ, "x", 1));
	must(!rights_known(*ret_rights, rights_users(*ret_rights) + 1));
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("authorized_keys", MFD_CLOEXEC);
	struct rights *rights = NULL, *again = NULL;
	struct error err = { 0 };
	char path[32];
	int rc;

	must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	rc = read_rights(path, NULL, &rights, &err);
	if (rc) {
		must_explain(rc, &err);
	} else { /* the same file again: the same numbers, the same rights */
		must(!read_rights(path, rights, &again, &err) && rights_users(again) == rights_users(rights));
		for (unsigned user = 1; user <= rights_users(rights); user++)
			for (int right = 0; right < N_RIGHTS; right++)
				must(rights_same(rights, again, user, (enum right)right));
	}
	rights_free(rights);
	rights_free(again);
	close(fd);
	return 0;
}
