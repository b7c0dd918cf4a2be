package main

import (
	"strings"
	"testing"
)

func TestAnswer(t *testing.T) {
	var text strings.Builder
	if err := answer(&text, "example.org"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "whoami unset") {
		t.Fatal(text.String())
	}
}
