/*
 * CURVE keys and their files: see keys.h.  The curve itself is ZeroMQ's.
 */
#include "protocol/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zmq.h>

#define LINE_MAX_BYTES 256
#define SECRET "secret-key"
#define PUBLIC "public-key"

int keys_generate(struct key_pair *ret_pair, struct error *err)
{
	if (zmq_curve_keypair(ret_pair->public_key, ret_pair->secret_key) != 0)
		return error_set(err, ERR_SYSTEM, "no key could be made: %s", zmq_strerror(errno));
	return 0;
}

bool keys_parse(const char *text, unsigned char ret_key[KEY_BYTES])
{
	return strlen(text) == KEY_TEXT - 1 && zmq_z85_decode(ret_key, text) != NULL;
}

void keys_format(const unsigned char key[KEY_BYTES], char text[KEY_TEXT])
{
	zmq_z85_encode(text, key, KEY_BYTES);
}

/* --- writing --- */

/* Write a new file whose mode is exactly that; on failure there is none. */
static int write_file(const char *path, mode_t mode, const char *comment, const char *keyword, const char *key,
		      struct error *err)
{
	const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
	int status = 0;

	if (fd < 0)
		return error_system(err, "%s", path);
	if (fchmod(fd, mode) != 0 || dprintf(fd, "# %s\n%s %s\n", comment, keyword, key) < 0 || fsync(fd) != 0)
		status = error_system(err, "%s", path);
	close(fd);
	if (status != 0)
		unlink(path);
	return status;
}

int keys_write(const char *path, const struct key_pair *pair, struct error *err)
{
	char public_path[4096];
	int status;

	if ((size_t)snprintf(public_path, sizeof public_path, "%s.pub", path) >= sizeof public_path)
		return error_set(err, ERR_ARGUMENT, "%s: too long a name", path);
	if (access(public_path, F_OK) == 0)
		return error_set(err, ERR_SYSTEM, "%s: File exists", public_path);
	status = write_file(path, 0600, "Whoever has this key is its owner: keep it secret.", SECRET, pair->secret_key,
			    err);
	if (status != 0)
		return status;
	status = write_file(public_path, 0644, "This may be known to everybody.", PUBLIC, pair->public_key, err);
	if (status != 0)
		unlink(path);
	return status;
}

/* --- reading --- */

static int bad_file(const char *path, const char *keyword, struct error *err)
{
	return error_set(err, ERR_FORMAT, "%s: no key file: expected one line \"%s KEY\", 40 characters of Z85", path,
			 keyword);
}

/* The key in a line "KEYWORD KEY". */
static int read_line(const char *path, const char *line, const char *keyword, char ret_key[KEY_TEXT], struct error *err)
{
	unsigned char bytes[KEY_BYTES];
	char word[LINE_MAX_BYTES], key[LINE_MAX_BYTES], rest[2];

	if (sscanf(line, "%255s %255s %1s", word, key, rest) != 2 || !keys_parse(key, bytes))
		return bad_file(path, keyword, err);
	if ((strcmp(word, SECRET) == 0 || strcmp(word, PUBLIC) == 0) && strcmp(word, keyword) != 0)
		return error_set(err, ERR_FORMAT, "%s: holds a %s, expected a %s", path, word, keyword);
	if (strcmp(word, keyword) != 0)
		return bad_file(path, keyword, err);
	memcpy(ret_key, key, KEY_TEXT);
	return 0;
}

/* The one line of a file that is neither empty nor a comment. */
static int read_key(const char *path, FILE *file, const char *keyword, char ret_key[KEY_TEXT], struct error *err)
{
	char line[LINE_MAX_BYTES];
	int n = 0, status = 0;

	while (status == 0 && fgets(line, sizeof line, file)) {
		if (line[0] == '#' || line[strspn(line, " \t\r\n")] == '\0')
			continue;
		n++;
		status = read_line(path, line, keyword, ret_key, err);
	}
	if (status == 0 && ferror(file))
		return error_system(err, "%s", path);
	return status != 0 || n == 1 ? status : bad_file(path, keyword, err);
}

int keys_read_public(const char *path, char ret_key[KEY_TEXT], struct error *err)
{
	FILE *file = fopen(path, "re");
	int status;

	if (!file)
		return error_system(err, "%s", path);
	status = read_key(path, file, PUBLIC, ret_key, err);
	fclose(file);
	return status;
}

/* A group may be how another owner hands the file to us, as systemd does with credentials. */
static bool is_private(const struct stat *info)
{
	return !(info->st_mode & 07) && (!(info->st_mode & 070) || info->st_uid != geteuid());
}

int keys_read_secret(const char *path, struct key_pair *ret_pair, struct error *err)
{
	FILE *file = fopen(path, "re");
	struct key_pair pair;
	struct stat info;
	int status;

	if (!file)
		return error_system(err, "%s", path);
	if (fstat(fileno(file), &info) != 0)
		status = error_system(err, "%s", path);
	else if (!is_private(&info))
		status = error_set(err, ERR_ARGUMENT, "%s: mode %04o: a secret key is for its owner alone (chmod 600)",
				   path, (unsigned int)info.st_mode & 07777u);
	else
		status = read_key(path, file, SECRET, pair.secret_key, err);
	fclose(file);
	if (status != 0)
		return status;
	if (zmq_curve_public(pair.public_key, pair.secret_key) != 0)
		return error_set(err, ERR_FORMAT, "%s: not a key: %s", path, zmq_strerror(errno));
	*ret_pair = pair;
	return 0;
}
