/*
 * The daemon as a service while it loads: systemd is asked for more time as long as something is being done.  What it
 * is told later is for the end-to-end tests.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "daemon/service.h"
#include "daemon/systemd.h"
#include "tests/suite.h"

static char folder[] = "/tmp/mamba2d-check-XXXXXX";

/* The service manager's end. */
static int listen_as_manager(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);

	ck_assert_ptr_nonnull(mkdtemp(folder));
	snprintf(address.sun_path, sizeof address.sun_path, "%s/notify", folder);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
	setenv("NOTIFY_SOCKET", address.sun_path, 1);
	return fd;
}

static void leave(int fd)
{
	char path[64];

	close(fd);
	snprintf(path, sizeof path, "%s/notify", folder);
	unlink(path);
	rmdir(folder);
}

START_TEST(loading_asks_for_more_time)
{
	struct service service = { .loader = NULL };
	struct error err;
	char text[512] = "";
	int fd = listen_as_manager();

	ck_assert_int_eq(service_load(&service, &err), 0);
	while (!strstr(text, "EXTEND_TIMEOUT_USEC=")) { /* something is being done */
		ssize_t n = recv(fd, text, sizeof text - 1, 0);

		for (clock_t until = clock() + CLOCKS_PER_SEC / 50; clock() < until;)
			;
		text[n > 0 ? n : 0] = '\0';
	}
	ck_assert_uint_gt(strtoul(strchr(text, '=') + 1, NULL, 10), 10000000);
	service_free(&service);
	ck_assert_ptr_null(service.loader);
	leave(fd);
}
END_TEST

START_TEST(without_a_manager_nothing_is_started)
{
	struct service service = { .loader = NULL };
	struct error err;

	unsetenv("NOTIFY_SOCKET");
	ck_assert_int_eq(service_load(&service, &err), 0);
	ck_assert_ptr_null(service.loader);
	service_free(&service);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("service");
	TCase *loading = tcase_create("loading");

	tcase_set_timeout(loading, 120);
	tcase_add_test(loading, without_a_manager_nothing_is_started);
	setenv("NOTIFY_SOCKET", "/nowhere", 1);
	if (systemd_listens()) /* not in a build without libsystemd */
		tcase_add_test(loading, loading_asks_for_more_time);
	suite_add_tcase(suite, loading);
	return suite_run(suite);
}
