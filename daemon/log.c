/* The log: see log.h.  Lines are formatted into one buffer and written with one write, so that they never interleave. */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static enum log_level log_level = LOG_LEVEL_INFO;

/* syslog's numbers */
static const int priority[] = {
	[LOG_LEVEL_ERROR] = 3, [LOG_LEVEL_WARNING] = 4, [LOG_LEVEL_NOTICE] = 5, [LOG_LEVEL_INFO] = 6,
	[LOG_LEVEL_DEBUG] = 7
};

void log_set_level(enum log_level level)
{
	log_level = level;
}

bool log_enabled(enum log_level level)
{
	return level <= log_level;
}

void log_line(enum log_level level, const char *format, ...)
{
	char line[1024];
	size_t used = 0;
	int n;
	va_list args;

	if (!log_enabled(level))
		return;
	if (!isatty(STDERR_FILENO))
		used = (size_t)snprintf(line, sizeof line, "<%d>", priority[level]);
	va_start(args, format);
	n = vsnprintf(line + used, sizeof line - used - 1, format, args);
	va_end(args);
	used += n < 0 ? 0 : (size_t)n;
	if (used > sizeof line - 2)
		used = sizeof line - 2;
	for (size_t i = 0; i < used; i++)
		if ((unsigned char)line[i] < ' ')
			line[i] = ' ';
	line[used++] = '\n';
	if (write(STDERR_FILENO, line, used) < 0)
		return; /* nobody is left to tell */
}

bool log_tap_open(struct log_tap *tap, unsigned burst)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec != tap->second) {
		tap->second = now.tv_sec;
		tap->passed = 0;
	}
	if (tap->passed >= burst) {
		tap->held++;
		return false;
	}
	tap->passed++;
	tap->missed = tap->held;
	tap->held = 0;
	return true;
}
