// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
)

const (
	mi = int64(1) << 20
	gi = int64(1) << 30
)

func TestDefaultLadder(t *testing.T) {
	for _, c := range []struct {
		name   string
		cpus   int
		memory int64
		want   []string
	}{
		{"large host", 16, 64 * gi, []string{"1x256Mi", "1x512Mi", "2x1024Mi", "2x2048Mi", "4x4096Mi", "4x8192Mi"}},
		{"two processors", 2, 24 * gi, []string{"1x256Mi", "1x512Mi", "2x1024Mi", "2x2048Mi", "2x4096Mi", "2x8192Mi"}},
		{"little memory", 8, 2*gi - 1, []string{"1x256Mi", "1x512Mi", "2x1024Mi"}},
		{"exactly", 1, gi, []string{"1x256Mi", "1x512Mi", "1x1024Mi"}},
		{"no room", 1, 255 * mi, nil},
	} {
		var got []string
		for _, s := range DefaultLadder(c.cpus, c.memory) {
			got = append(got, s.String())
			if err := s.Validate(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestShapeFor(t *testing.T) {
	ladder := DefaultLadder(16, 64*gi)
	for _, c := range []struct {
		name   string
		need   Need
		want   string
		reason Reason
	}{
		{"nothing asked", Need{}, "1x256Mi", ""},
		{"a little", Need{100, 64 * mi}, "1x256Mi", ""},
		{"all that the guest leaves", Need{1000, 256*mi - GuestMemoryOverhead}, "1x256Mi", ""},
		{"one byte more", Need{1000, 256*mi - GuestMemoryOverhead + 1}, "1x512Mi", ""},
		{"a thousandth more", Need{1001, 0}, "2x1024Mi", ""},
		{"processors without memory", Need{4000, 0}, "4x4096Mi", ""},
		{"memory without processors", Need{0, 4 * gi}, "4x8192Mi", ""},
		{"too many processors", Need{4001, 0}, "", ReasonOversized},
		{"too much memory", Need{0, 8 * gi}, "", ReasonOversized},
		{"negative", Need{-1, 0}, "", ReasonInvalid},
	} {
		got, err := ShapeFor(ladder, c.need)
		if ReasonOf(err) != c.reason || (err == nil) != (c.reason == "") || err == nil && got.String() != c.want {
			t.Errorf("%s: got %s, %v; want %s %s", c.name, got, err, c.want, c.reason)
		}
	}
	if _, err := ShapeFor(nil, Need{}); ReasonOf(err) != ReasonOversized {
		t.Errorf("empty ladder: %v", err)
	}
	// No shape has both.
	odd := []vm.Shape{{VCPUs: 8, MemoryBytes: 256 * mi}, {VCPUs: 1, MemoryBytes: 8 * gi}}
	if _, err := ShapeFor(odd, Need{4000, 4 * gi}); ReasonOf(err) != ReasonOversized {
		t.Errorf("neither shape: %v", err)
	}
	if diff := cmp.Diff([]vm.Shape{odd[0], odd[1]}, SortLadder([]vm.Shape{odd[1], odd[0], odd[1]})); diff != "" {
		t.Error(diff)
	}
}
