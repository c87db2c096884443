/* The service manager and the journal: see systemd.h.  The only file that knows libsystemd. */
#include "daemon/systemd.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daemon/log.h"

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>

bool systemd_listens(void)
{
	return getenv("NOTIFY_SOCKET") != NULL;
}

void systemd_notify(const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	sd_notify(0, text); /* nobody else could be told of a failure */
}

uint64_t systemd_watchdog_us(void)
{
	uint64_t us = 0;

	return sd_watchdog_enabled(0, &us) > 0 ? us : 0;
}

bool systemd_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM"); /* "device:inode" of what systemd made stderr */
	unsigned long long device, inode;
	struct stat status;

	return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 && !fstat(STDERR_FILENO, &status) &&
	       status.st_dev == device && status.st_ino == inode;
}

/* "NAME=value" for a field, in buffer [size]. */
static struct iovec field(char *buffer, size_t size, const char *name, const char *value)
{
	snprintf(buffer, size, "%s=%s", name, value);
	return (struct iovec){ .iov_base = buffer, .iov_len = strlen(buffer) };
}

void systemd_log(int priority, const char *text, const char *stream, const char *code)
{
	char message[LOG_TEXT_MAX + sizeof "MESSAGE="], number[16], about[600], why[64];
	struct iovec fields[5];
	int n = 0;

	fields[n++] = field(message, sizeof message, "MESSAGE", text);
	snprintf(number, sizeof number, "PRIORITY=%d", priority);
	fields[n++] = (struct iovec){ .iov_base = number, .iov_len = strlen(number) };
	fields[n++] = (struct iovec){ .iov_base = "SYSLOG_IDENTIFIER=mamba2d", .iov_len = 25 };
	if (stream)
		fields[n++] = field(about, sizeof about, "STREAM", stream);
	if (code)
		fields[n++] = field(why, sizeof why, "CODE", code);
	sd_journal_sendv(fields, n);
}
