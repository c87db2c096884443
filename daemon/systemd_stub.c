/* systemd.h for builds without libsystemd: nobody listens. */
#include "daemon/systemd.h"

bool systemd_listens(void)
{
	return false;
}

void systemd_notify(const char *format, ...)
{
	(void)format;
}

uint64_t systemd_watchdog_us(void)
{
	return 0;
}

bool systemd_journal(void)
{
	return false;
}

void systemd_log(int priority, const char *text, const char *stream, const char *code)
{
	(void)priority;
	(void)text;
	(void)stream;
	(void)code;
}
