/* See fake_daemon.h. */
#include "tests/fake_daemon.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tests/fake_device.h"
#include "tests/fake_endpoint.h"
#include "tests/fuzz.h"

static _Atomic uint64_t ahead_ns; /* of the real clock, which all threads ask for */
static char folder[64];
static struct config_source source;
static struct config config;

/* --- time --- */

void fake_time_passes(uint64_t ns)
{
	ahead_ns += ns;
}

/* In the place of the C library's. */
int clock_gettime(clockid_t clock, struct timespec *time)
{
	const long rc = syscall(SYS_clock_gettime, clock, time);
	const uint64_t ns = (uint64_t)time->tv_nsec + ahead_ns % 1000000000u;

	time->tv_sec += (time_t)(ahead_ns / 1000000000u + ns / 1000000000u);
	time->tv_nsec = (long)(ns % 1000000000u);
	return (int)rc;
}

/* --- the folder --- */

atomic_bool fake_disk_broken;

/* In the place of the C library's: nothing gets to the disk, so none of it needs a real one. */
static int sync_fake(void)
{
	errno = EIO;
	return fake_disk_broken ? -1 : 0;
}

int fsync(int fd)
{
	(void)fd;
	return sync_fake();
}

int fdatasync(int fd)
{
	(void)fd;
	return sync_fake();
}

void fake_folder_make(void)
{
	snprintf(folder, sizeof folder, "/dev/shm/mamba2d-fuzz-XXXXXX");
	must(mkdtemp(folder));
}

void fake_folder_remove(void)
{
	DIR *dir = opendir(folder);
	const struct dirent *entry;

	must(dir);
	while ((entry = readdir(dir)))
		unlinkat(dirfd(dir), entry->d_name, 0);
	closedir(dir);
	must(!rmdir(folder));
}

/* --- the daemon --- */

void fake_daemon_set(const char *setting)
{
	struct error err;

	must(!string_list_add(&source.overrides, setting, &err));
}

static void set(const char *const *settings)
{
	for (; *settings; settings++)
		fake_daemon_set(*settings);
}

static void close_daemon(struct server *server)
{
	server_free(server);
	config_free(&config);
	string_list_clear(&source.overrides);
	fake_forget(ENDPOINT_INGEST);
	fake_forget(ENDPOINT_SUBSCRIBE);
	fake_forget(ENDPOINT_CONTROL);
}

int fake_daemon_open(struct server *server, bool states, const char *const *settings, struct error *err)
{
	static const char *const fixed[] = {
		"model=" TESTS_DIR "/golden/seed-46032", "device=cpu", "window=4", "limits.credit_rows=40",
		"metrics.listen=", "log.level=error", "sockets.ingest=ipc://in",
		"sockets.publish=ipc://out", "sockets.control=ipc://control", "shutdown_timeout=1000", NULL
	};
	char text[80];
	int rc;

	log_set_level(LOG_LEVEL_ERROR);
	snprintf(text, sizeof text, "state.dir=%s", states ? folder : "");
	source = (struct config_source){ { NULL, 0 }, { NULL, 0 } };
	set(fixed);
	set((const char *const[]){ text, NULL });
	set(settings);
	config = (struct config){ .model = NULL };
	must(!config_load(&config, &source, err) && !config_finish(&config, err));
	rc = server_open(server, &config, &source, err);
	if (rc)
		close_daemon(server);
	return rc;
}

int fake_daemon_run(struct server *server, struct error *err)
{
	const int rc = server_run(server, err);

	fake_stuck = false; /* a worker ends when it has done what it was at */
	close_daemon(server);
	return rc;
}
