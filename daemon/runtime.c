/* The runtime folder: see runtime.h. */
#include "daemon/runtime.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void choose_folder(char *buffer, size_t size)
{
	const char *runtime = getenv("RUNTIME_DIRECTORY"), *session = getenv("XDG_RUNTIME_DIR");

	if (runtime && *runtime)
		snprintf(buffer, size, "%s", runtime);
	else if (!geteuid())
		snprintf(buffer, size, "/run/mamba2d");
	else if (session && *session)
		snprintf(buffer, size, "%s/mamba2d", session);
	else
		snprintf(buffer, size, "/tmp/mamba2d-%u", (unsigned)geteuid());
}

static int folder_address(const char *folder, bool any_owner, char *buffer, size_t size, struct error *err)
{
	struct stat status;

	if (lstat(folder, &status))
		return error_system(err, "%s", folder);
	if (!S_ISDIR(status.st_mode) || (status.st_uid != geteuid() && !any_owner))
		return error_set(err, ERR_SYSTEM, "%s: is not a folder of this user", folder);
	snprintf(buffer, size, "ipc://%s/control", folder);
	return 0;
}

int runtime_control_address(char *buffer, size_t size, struct error *err)
{
	char folder[200];

	choose_folder(folder, sizeof folder);
	if (mkdir(folder, 0700) && errno != EEXIST)
		return error_system(err, "%s: cannot be made", folder);
	return folder_address(folder, false, buffer, size, err);
}

int runtime_find_control(char *buffer, size_t size, struct error *err)
{
	char folder[200];

	choose_folder(folder, sizeof folder);
	return folder_address(folder, !geteuid(), buffer, size, err);
}
