// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package clocktest lets tests set a clock: no function of package time makes a time whose
// wall and monotonic readings have moved apart.
package clocktest

import (
	"testing"
	"time"
	"unsafe"
)

// secondsShift is where the seconds begin in the first word of a time.Time that has a monotonic
// reading: above 30 bits of nanoseconds ($GOROOT/src/time/time.go).
const secondsShift = 30

// Jump is now, a result of time.Now, on a host whose wall clock was set by d: the monotonic
// reading is the same. Whole seconds only.
func Jump(t testing.TB, now time.Time, d time.Duration) time.Time {
	t.Helper()
	jumped := now
	word := (*uint64)(unsafe.Pointer(&jumped)) //nolint:gosec // the only way; checked below
	*word += uint64(int64(d/time.Second)) << secondsShift
	if jumped.Sub(now) != 0 || jumped.Round(0).Sub(now.Round(0)) != d {
		t.Fatalf("a time that is set by %s differs by %s, its monotonic reading by %s: package time has changed", d, jumped.Round(0).Sub(now.Round(0)), jumped.Sub(now))
	}
	return jumped
}
