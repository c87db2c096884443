/*
 * The configuration as a file that could be read: every key of the table with its meaning and its value.
 */
#include <inttypes.h>
#include <string.h>

#include "daemon/config.h"
#include "daemon/config_key.h"

/* Characters that YAML would change or refuse as they are, in quotes as well; beside control characters. */
static const struct {
	const char *bytes, *escape;
} special[] = {
	{ "\"", "\\\"" }, { "\\", "\\\\" }, { "\u2028", "\\L" }, { "\u2029", "\\P" }, { "\ufeff", "\\ufeff" },
	{ "\ufffe", "\\ufffe" }, { "\uffff", "\\uffff" }
};

/* Write the character at text, or a byte of it; returns how many bytes of text that was. */
static size_t print_character(const char *text, FILE *file)
{
	const unsigned char *byte = (const unsigned char *)text;

	for (size_t i = 0; i < sizeof special / sizeof special[0]; i++)
		if (!strncmp(text, special[i].bytes, strlen(special[i].bytes))) {
			fputs(special[i].escape, file);
			return strlen(special[i].bytes);
		}
	if (byte[0] == 0xc2 && byte[1] >= 0x80 && byte[1] < 0xa0) { /* U+0080 to U+009F */
		fprintf(file, "\\x%02x", (unsigned)byte[1]);
		return 2;
	}
	if (*byte < ' ' || *byte == 0x7f)
		fprintf(file, "\\x%02x", (unsigned)*byte);
	else
		fputc(*byte, file);
	return 1;
}

/* A scalar as YAML: plain where that is safe, else in double quotes. */
static void print_text(const char *text, FILE *file)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.-";

	if (*text && strspn(text, plain) == strlen(text) && *text != '-') {
		fputs(text, file);
		return;
	}
	fputc('"', file);
	while (*text)
		text += print_character(text, file);
	fputc('"', file);
}

static void print_value(const struct key *key, const void *field, FILE *file)
{
	switch (key->kind) {
	case KIND_STRING:
		print_text(*(char *const *)field, file);
		break;
	case KIND_STRINGS:
		fputc('[', file);
		for (size_t i = 0; i < ((const struct string_list *)field)->n; i++) {
			fputs(i ? ", " : "", file);
			print_text(((const struct string_list *)field)->item[i], file);
		}
		fputc(']', file);
		break;
	case KIND_UINT:
		if (key->automatic && !*(const uint64_t *)field)
			fputs("auto", file);
		else
			fprintf(file, "%" PRIu64, *(const uint64_t *)field);
		break;
	case KIND_SECONDS:
		fprintf(file, "%.15g", *(const double *)field);
		break;
	case KIND_CHOICE:
		for (const struct choice *c = key->choices; c->name; c++)
			if (c->value == *(const int *)field)
				fputs(c->name, file);
		break;
	case KIND_MODE:
		fprintf(file, "%04" PRIo64, *(const uint64_t *)field);
		break;
	}
}

void config_print(const struct config *config, FILE *file)
{
	char section[64] = "";

	for (size_t i = 0; i < config_n_keys; i++) {
		const struct key *key = &config_keys[i];
		const char *dot = strchr(key->name, '.');
		int length = dot ? (int)(dot - key->name) : 0;
		const char *indent = dot ? "  " : "";

		if (strncmp(section, key->name, (size_t)length) || section[length] || !i) {
			snprintf(section, sizeof section, "%.*s", length, key->name);
			fprintf(file, length ? "\n%s:\n" : "%s", section);
		}
		if (!dot)
			fputc('\n', file);
		fprintf(file, "%s# %s", indent, key->help);
		if (key->kind == KIND_UINT)
			fprintf(file, "; %" PRIu64 " to %" PRIu64, key->least, key->most);
		fprintf(file, "%s. Default: %s\n", key->live ? "; live" : "", *key->fallback ? key->fallback : "none");
		fprintf(file, "%s%s: ", indent, dot ? dot + 1 : key->name);
		print_value(key, (const char *)config + key->offset, file);
		fputc('\n', file);
	}
}
