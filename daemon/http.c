/*
 * A small HTTP server: see http.h.  The only file that knows libmicrohttpd, which is used with a polling descriptor of
 * its own that the loop waits for beside its sockets.
 */
#include "daemon/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <microhttpd.h>

#define CONNECTIONS_MAX 32
#define CONNECTION_BYTES ((size_t)32 << 10) /* of libmicrohttpd's own for each */
#define IDLE_S 10u

struct http {
	struct MHD_Daemon *daemon;
	http_handler *handle;
	void *arg;
	char address[300];
	bool local;
};

/* --- answering --- */

static enum MHD_Result respond(struct MHD_Connection *connection, const struct http_answer *answer)
{
	struct MHD_Response *response =
		answer->body ? MHD_create_response_from_buffer(answer->size, answer->body, MHD_RESPMEM_MUST_FREE)
			     : MHD_create_response_from_buffer(answer->size, (void *)(uintptr_t)answer->text,
							       MHD_RESPMEM_PERSISTENT);
	enum MHD_Result result;

	if (!response) {
		free(answer->body);
		return MHD_NO;
	}
	MHD_add_response_header(response, "Content-Type", answer->type);
	MHD_add_response_header(response, "Cache-Control", "no-store");
	MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
	result = MHD_queue_response(connection, answer->status, response);
	MHD_destroy_response(response);
	return result;
}

static enum MHD_Result serve(void *arg, struct MHD_Connection *connection, const char *url, const char *method,
			     const char *version, const char *upload, size_t *upload_size, void **state)
{
	static int seen;
	const struct http *http = arg;
	struct http_answer answer = { .status = 405, .type = "text/plain", .text = "GET only\n" };

	(void)version;
	(void)upload;
	if (!*state) { /* the headers are there, a body may follow */
		*state = &seen;
		return MHD_YES;
	}
	if (*upload_size) { /* nobody asked for it */
		*upload_size = 0;
		return MHD_YES;
	}
	answer.size = strlen(answer.text);
	if (!strcmp(method, "GET") || !strcmp(method, "HEAD"))
		http->handle(http->arg, url, MHD_lookup_connection_value(connection, MHD_GET_ARGUMENT_KIND, "prefix"),
			     &answer);
	return respond(connection, &answer);
}

/* --- listening --- */

/* Split "HOST:PORT"; "[HOST]" loses its brackets.  false: it is no such thing. */
static bool split(const char *address, char *host, size_t size, const char **ret_port)
{
	const char *colon = strrchr(address, ':');
	size_t length = colon ? (size_t)(colon - address) : 0;

	if (!colon || !colon[1] || strspn(colon + 1, "0123456789") != strlen(colon + 1) ||
	    strtoul(colon + 1, NULL, 10) > 65535)
		return false;
	if (length > 1 && address[0] == '[' && address[length - 1] == ']') {
		address++;
		length -= 2;
	} else if (memchr(address, ':', length)) {
		return false;
	}
	if (!length || length >= size)
		return false;
	snprintf(host, size, "%.*s", (int)length, address);
	*ret_port = colon + 1;
	return true;
}

int http_check(const char *address, struct error *err)
{
	const char *port;
	char host[256];

	if (split(address, host, sizeof host, &port))
		return 0;
	return error_set(err, ERR_ARGUMENT, "metrics.listen: \"%s\", expected HOST:PORT", address);
}

static int listen_at(const struct addrinfo *info)
{
	const int one = 1;
	int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) || bind(fd, info->ai_addr, info->ai_addrlen) ||
	    listen(fd, CONNECTIONS_MAX)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int open_socket(const char *address, int *ret_fd, struct error *err)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *found;
	const char *port;
	char host[256];
	int rc;

	rc = http_check(address, err);
	if (rc)
		return rc;
	split(address, host, sizeof host, &port);
	rc = getaddrinfo(strcmp(host, "*") ? host : NULL, port, &hints, &found);
	if (rc)
		return error_set(err, ERR_ARGUMENT, "metrics.listen: %s: %s", address, gai_strerror(rc));
	*ret_fd = listen_at(found);
	freeaddrinfo(found);
	return *ret_fd < 0 ? error_system(err, "metrics.listen: %s", address) : 0;
}

static bool is_loopback(const struct sockaddr_storage *address)
{
	if (address->ss_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
	return address->ss_family == AF_INET6 &&
	       IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

/* What the socket is bound to. */
static void name_socket(struct http *http, int fd)
{
	struct sockaddr_storage bound = { .ss_family = AF_UNSPEC };
	socklen_t length = sizeof bound;
	char host[256] = "?", port[32] = "?";

	if (!getsockname(fd, (struct sockaddr *)&bound, &length))
		getnameinfo((struct sockaddr *)&bound, length, host, sizeof host, port, sizeof port,
			    NI_NUMERICHOST | NI_NUMERICSERV);
	snprintf(http->address, sizeof http->address, bound.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
	http->local = is_loopback(&bound);
}

int http_new(const char *address, http_handler *handle, void *arg, struct http **ret_http, struct error *err)
{
	struct http *http = calloc(1, sizeof *http);
	int fd, rc;

	if (!http)
		return error_memory(err, "metrics.listen");
	rc = open_socket(address, &fd, err);
	if (rc) {
		free(http);
		return rc;
	}
	http->handle = handle;
	http->arg = arg;
	name_socket(http, fd);
	http->daemon = MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, serve, http, MHD_OPTION_LISTEN_SOCKET, fd,
					MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX,
					MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_BYTES,
					MHD_OPTION_CONNECTION_TIMEOUT, IDLE_S, MHD_OPTION_END);
	if (!http->daemon) {
		close(fd);
		free(http);
		return error_set(err, ERR_SYSTEM, "metrics.listen: %s: the HTTP server does not start", address);
	}
	*ret_http = http;
	return 0;
}

void http_free(struct http *http)
{
	if (!http)
		return;
	MHD_stop_daemon(http->daemon);
	free(http);
}

const char *http_address(const struct http *http)
{
	return http->address;
}

bool http_is_local(const struct http *http)
{
	return http->local;
}

int http_fd(const struct http *http)
{
	return MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
}

int http_timeout_ms(struct http *http)
{
	MHD_UNSIGNED_LONG_LONG ms;

	if (MHD_get_timeout(http->daemon, &ms) != MHD_YES)
		return -1;
	return ms < 60000 ? (int)ms : 60000;
}

static unsigned connections(const struct http *http)
{
	return MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS)->num_connections;
}

void http_turn(struct http *http)
{
	unsigned before;

	do { /* again when one was closed: only then does it look whether another waits for the place */
		before = connections(http);
		MHD_run(http->daemon);
	} while (connections(http) < before);
}
