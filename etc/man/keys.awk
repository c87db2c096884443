# The keys of mamba2d --print-config as an mdoc(7) list: "# Meaning. Default: VALUE" and "key: VALUE" become a term and
# its meaning.
function literal(s) {
	gsub(/\\/, "\\e", s)
	gsub(/-/, "\\-", s)
	return s
}

BEGIN { print ".Bl -tag -width Ds" }
/^ *# / {
	sub(/^ *# /, "")
	at = index($0, " Default: ")
	meaning = substr($0, 1, at - 1)
	fallback = substr($0, at + 10)
	next
}
/^[a-z_]+:$/ { section = substr($0, 1, length($0) - 1) "."; next }
/^ *[a-z_]+: / {
	key = $1
	sub(/:$/, "", key)
	print ".It Ic " ($0 ~ /^ / ? section : "") key
	print literal(meaning)
	print fallback == "none" ? "No default." : "Default:\n.Li " literal(fallback)
}
END { print ".El" }
