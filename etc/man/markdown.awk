# Markdown to mdoc(7), as much of it as protocol/PROTOCOL.md uses: headings, paragraphs, lists, tables, code, emphasis.
# The first heading is left out; tables become lists of terms.  A block is collected in text until its end is seen.

# A line of text as roff takes it literally.
function literal(s) {
	gsub(/\\/, "\\e", s)
	gsub(/-/, "\\-", s)
	return s
}

# Text outside of code: emphasis, and what is between brackets in [words](address).
function prose(s,    words) {
	gsub(/\\/, "\\e", s)
	while (match(s, /\*\*[^*]+\*\*/))
		s = substr(s, 1, RSTART - 1) "\\fB" substr(s, RSTART + 2, RLENGTH - 4) "\\fR" substr(s, RSTART + RLENGTH)
	while (match(s, /\*[^* ][^*]*\*/))
		s = substr(s, 1, RSTART - 1) "\\fI" substr(s, RSTART + 1, RLENGTH - 2) "\\fR" substr(s, RSTART + RLENGTH)
	while (match(s, /\[[^]]*\]\([^)]*\)/)) {
		words = substr(s, RSTART + 1, index(substr(s, RSTART), "]") - 2)
		s = substr(s, 1, RSTART - 1) words substr(s, RSTART + RLENGTH)
	}
	return s
}

BEGIN { fresh = 1 } # no paragraph macro is due

# Every second piece between backquotes is code.
function inline(s,    piece, n, i, result) {
	n = split(s, piece, "`")
	for (i = 1; i <= n; i++)
		result = result (i % 2 ? prose(piece[i]) : "\\fB" literal(piece[i]) "\\fR")
	return result
}

# No line may begin with what roff takes for a request.
function guarded(s) {
	return s ~ /^[.']/ ? "\\&" s : s
}

# Print running text in lines of up to 80 characters, each sentence from the beginning of a line, as mdoc wants it.
function print_text(s,    word, n, i, line) {
	n = split(s, word, " ")
	line = word[1]
	for (i = 2; i <= n; i++) {
		if (length(line " " word[i]) > 79 || line ~ /[.?!]\)?$/ && word[i] ~ /^[A-Z\\]/) {
			print guarded(line)
			line = word[i]
		} else {
			line = line " " word[i]
		}
	}
	print guarded(line)
}

function argument(s) {
	gsub(/"/, "\\(dq", s)
	return "\"" s "\""
}

function flush_text() {
	if (text != "") {
		if (!fresh)
			print ".Pp"
		print_text(inline(text))
		fresh = 0
	}
	text = ""
}

# Open or close lists until depth of them are open.
function lists_to(wanted) {
	flush_text()
	for (; depth < wanted; depth++)
		print ".Bl -bullet" (depth ? "" : " -offset 2n")
	for (; depth > wanted; depth--) {
		print ".El"
		fresh = 0
	}
}

function heading(macro, s) {
	lists_to(0)
	print macro " " s
	fresh = 1
}

# | term | middle cells | meaning |
function table_row(line,    cell, n, i, term) {
	gsub(/^\| *| *\|$/, "", line)
	n = split(line, cell, / *\| */)
	if (!in_table) {        # the head of the table
		lists_to(0)
		print ".Bl -tag -width Ds"
		in_table = 1
		return
	}
	if (cell[1] ~ /^-+$/)
		return
	term = inline(cell[1])
	for (i = 2; i < n; i++)
		if (cell[i] != "")
			term = term ", " inline(cell[i])
	print ".It " argument(term)
	print_text(inline(cell[n]))
}

function end_table() {
	if (!in_table)
		return
	print ".El"
	in_table = fresh = 0
}

/^```/ {
	if (in_code) {
		print ".Ed"
	} else {
		lists_to(0)
		print ".Bd -literal -offset indent"
	}
	in_code = !in_code
	fresh = 0
	next
}
in_code { print guarded(literal($0)); next }
/^\|/ { table_row($0); next }
{ end_table() }
/^# / { next }
/^## / { heading(".Sh", toupper(substr($0, 4))); next }
/^### / { heading(".Ss", substr($0, 5)); next }
/^ *- / {
	lists_to(/^ / ? 2 : 1)
	sub(/^ *- /, "")
	print ".It"
	text = $0
	fresh = 1
	next
}
/^$/ { flush_text(); next }
{
	if (text == "" && !/^ /)
		lists_to(0)
	sub(/^ +/, "")
	text = text (text == "" ? "" : " ") $0
}
END { end_table(); lists_to(0) }
