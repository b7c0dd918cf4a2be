module example.org/whoami

go 1.19

require github.com/google/uuid v1.3.0

// Debian's package of it.
replace github.com/google/uuid => /usr/share/gocode/src/github.com/google/uuid
