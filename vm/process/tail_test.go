// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"strings"
	"testing"
)

func TestTailIsBounded(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := Collect(r)
	for range 100 {
		if _, err := w.WriteString(strings.Repeat("noise\n", 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.WriteString("last\xff words"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	c.Close()
	if got := c.String(); len(got) > 2*tailBytes || !strings.HasSuffix(got, "last? words") {
		t.Errorf("kept %d bytes ending in %q", len(got), got[max(0, len(got)-20):])
	}
}
