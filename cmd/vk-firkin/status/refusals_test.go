// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestRefusals(t *testing.T) {
	var r Refusals
	if got := r.List(); got == nil || len(got) != 0 {
		t.Errorf("nothing is %v", got)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r.Add("team/a", "1", "QueueFull", "first", at)
	r.Add("team/b", "2", "QueueFull", "other", at.Add(time.Second))
	r.Add("team/a", "1", "QueueFull", "again", at.Add(2*time.Second))
	r.Add("team/a", "1", "Oversized", "too large", at.Add(3*time.Second))
	got := r.List()
	if len(got) != 3 || got[0].Reason != "Oversized" || got[2].Pod != "team/b" {
		t.Fatalf("%+v", got)
	}
	if a := got[1]; a.Count != 2 || a.Message != "again" || !a.First.Equal(at) || !a.Last.Equal(at.Add(2*time.Second)) {
		t.Errorf("refused twice: %+v", a)
	}
	got[0].Pod = "changed" // a copy
	// Whatever comes, it stays small and valid.
	for i := range 10 * maxRefusals {
		r.Add("team/many", fmt.Sprint(i), "UnsupportedField", strings.Repeat("ä", 4<<10), at)
	}
	got = r.List()
	if len(got) != maxRefusals || got[0].PodUID != fmt.Sprint(10*maxRefusals-1) {
		t.Errorf("%d are kept, the newest is %+v", len(got), got[0].PodUID)
	}
	if m := got[0].Message; len(m) > maxRefusalMessage+8 || !utf8.ValidString(m) {
		t.Errorf("a message of %d bytes", len(m))
	}
}
