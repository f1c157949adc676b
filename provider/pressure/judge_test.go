// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"testing"
	"time"
)

const gi = 1 << 30

// A floor counts at once, exactly as much is enough, and above it only a margin undoes it.
func TestJudge(t *testing.T) {
	begin := time.Unix(1000, 0)
	floors := Floors{Refill: 20 * gi, Free: 10 * gi, Soft: Amount{Bytes: 4 * gi}, Hard: Amount{Percent: 1}, SoftGrace: time.Minute}
	type look struct {
		at    int // s
		r     Reading
		depth Depth
		hard  bool
	}
	free := func(n int64) Reading { return Reading{Available: n, Total: 100 * gi} }
	for _, c := range []struct {
		name       string
		transition time.Duration
		looks      []look
	}{
		{"floors", 0, []look{{0, free(20 * gi), Ease, false}, {1, free(20*gi - 1), Brake, false}, {2, free(10 * gi), Brake, false}, {3, free(10*gi - 1), Shed, false}, {4, free(gi - 1), Evict, true}}},
		{"margins", 0, []look{
			{0, free(gi - 1), Evict, true}, {1, free(gi), Evict, true}, {2, free(gi + gi/10), Shed, false}, {3, free(10 * gi), Shed, false},
			{4, free(11*gi - 1), Shed, false}, {5, free(11 * gi), Brake, false}, {6, free(22*gi - 1), Brake, false}, {7, free(22 * gi), Ease, false}, {8, free(20 * gi), Ease, false},
		}},
		{"soft only after its grace", 0, []look{{0, free(4*gi - 1), Shed, false}, {59, free(3 * gi), Shed, false}, {60, free(3 * gi), Evict, false}, {61, free(4 * gi), Evict, false}, {62, free(5 * gi), Shed, false}, {63, free(3 * gi), Shed, false}}},
		{"the pools wait for the transition", time.Minute, []look{{0, free(gi * 9), Shed, false}, {1, free(99 * gi), Brake, false}, {59, free(99 * gi), Brake, false}, {60, free(99 * gi), Ease, false}, {61, free(99 * gi), Ease, false}}},
		{"inodes end no pods", 0, []look{
			{0, Reading{Available: 99 * gi, Inodes: 1000, FreeInodes: 50}, Ease, false}, {1, Reading{Available: 99 * gi, Inodes: 1000, FreeInodes: 49}, Shed, false},
			{2, Reading{Available: 99 * gi, Inodes: 1000, FreeInodes: 54}, Shed, false}, {3, Reading{Available: 99 * gi, Inodes: 1000, FreeInodes: 55}, Ease, false}, {4, Reading{Available: 99 * gi}, Ease, false},
		}},
		{"the kernel's own level", 0, []look{
			{0, Reading{Available: 99 * gi, Level: LevelWarning}, Brake, false}, {1, Reading{Available: 99 * gi, Level: LevelCritical}, Evict, true}, {2, Reading{Available: 99 * gi}, Ease, false},
		}},
		{"full", 0, []look{{0, Reading{Total: 100 * gi}, Evict, true}}},
	} {
		var s standing
		for _, l := range c.looks {
			s = judge(s, l.r, floors, c.transition, begin.Add(time.Duration(l.at)*time.Second))
			if s.depth != l.depth || s.hard != l.hard || s.text == "" {
				t.Errorf("%s, after %d s: %+v, want depth %d, hard %v", c.name, l.at, s, l.depth, l.hard)
			}
			if s.depth >= Shed && s.lack <= 0 || s.depth == Evict && l.r.Level == LevelNormal && s.evictLack <= 0 {
				t.Errorf("%s, after %d s: nothing lacks: %+v", c.name, l.at, s)
			}
		}
	}
	if s := judge(standing{}, Reading{}, Floors{}, 0, begin); s.depth != Ease {
		t.Errorf("without floors: %+v", s)
	}
}

func TestThresholds(t *testing.T) {
	got, err := ParseThresholds(" memory.available<100Mi, nodefs.available<5.5%")
	if err != nil || got[SignalMemory] != (Amount{Bytes: 100 << 20}) || got[SignalDisk] != (Amount{Percent: 5.5}) || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := ParseThresholds(""); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{
		"memory.available", "memory.available<", "memory.available<-1", "memory.available<101%", "memory.available<NaN%", "memory.available<x%",
		"disk<1Gi", "imagefs.available<1Gi", "pid.available<5%", "memory.available<1Gi,memory.available<2Gi",
	} {
		if got, err := ParseThresholds(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
	soft := map[string]Amount{SignalMemory: {Bytes: 1}}
	if got, err := ParseGrace(map[string]string{SignalMemory: "1m30s"}, soft); err != nil || got[SignalMemory] != 90*time.Second {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []map[string]string{{}, {SignalMemory: "soon"}, {SignalMemory: "-1s"}, {SignalMemory: "1s", SignalDisk: "1s"}} {
		if got, err := ParseGrace(bad, soft); err == nil {
			t.Errorf("%v is %v", bad, got)
		}
	}
}
