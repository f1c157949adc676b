// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package mac

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is a product version of macOS, component by component. It is no decimal
// number: 15.10 is newer than 15.9.
type Version []int

// ParseVersion reads "14", "15.10" or "26.0.1". What follows a blank is left out: a Rapid
// Security Response is shown as "13.4.1 (a)".
func ParseVersion(s string) (Version, error) {
	number, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	parts := strings.Split(number, ".")
	if len(parts) > 4 {
		return nil, fmt.Errorf("%q is not a version of macOS", s)
	}
	var v Version
	for _, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a version of macOS", s)
		}
		v = append(v, int(n))
	}
	return v, nil
}

// Compare is negative when v is older than w, positive when it is newer. 14 and 14.0 are
// the same.
func (v Version) Compare(w Version) int {
	for i := range max(len(v), len(w)) {
		if d := v.at(i) - w.at(i); d != 0 {
			return d
		}
	}
	return 0
}

// AtLeast tells whether v is that version or a newer one.
func (v Version) AtLeast(components ...int) bool { return v.Compare(components) >= 0 }

func (v Version) at(i int) int {
	if i < len(v) {
		return v[i]
	}
	return 0
}
