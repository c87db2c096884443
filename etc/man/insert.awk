# Write a page with the lines of standard input in place of its line @...@.
/^@[A-Z]+@$/ {
	while ((getline line < "-") > 0)
		print line
	next
}
{ print }
