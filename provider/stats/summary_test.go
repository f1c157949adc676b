// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"encoding/json"
	"math"
	"regexp"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func TestRates(t *testing.T) {
	began := time.Now()
	prior := map[string]sample{}
	answer := func(machine, container int64, id string) *agentv1.StatsResponse {
		return &agentv1.StatsResponse{CpuNano: machine, Containers: []*agentv1.ContainerStats{{Id: id, CpuNano: container}}}
	}
	for i, c := range []struct {
		at     time.Duration
		answer *agentv1.StatsResponse
		want   map[string]uint64
	}{
		{0, answer(100, 10, "c-0"), map[string]uint64{}},
		{2 * time.Second, answer(2_000_000_100, 1_000_000_010, "c-0"), map[string]uint64{"": 1_000_000_000, "c-0": 500_000_000}},
		{2*time.Second + time.Millisecond, answer(2_000_000_200, 1_000_000_020, "c-0"), map[string]uint64{}},                        // too soon
		{4*time.Second + time.Millisecond, answer(2_000_000_200, 5, "c-1"), map[string]uint64{"": 0}},                               // another run
		{6*time.Second + time.Millisecond, answer(1, math.MinInt64, "c-1"), map[string]uint64{}},                                    // backwards
		{8*time.Second + time.Millisecond, answer(math.MaxInt64, math.MaxInt64, "c-1"), map[string]uint64{"": 4611686018427387904}}, // absurd, and no number to compare with
	} {
		m := measured(c.answer, began.Add(c.at), prior)
		if len(m.rates) != len(c.want) {
			t.Errorf("step %d: rates are %v, want %v", i, m.rates, c.want)
		}
		for id, want := range c.want {
			if m.rates[id] != want {
				t.Errorf("step %d: rate of %q is %d, want %d", i, id, m.rates[id], want)
			}
		}
	}
}

// FuzzPodStats: whatever a guest answers, what is told of it is of the pod's containers
// and volumes, and no number is negative, or would be after a conversion.
func FuzzPodStats(f *testing.F) {
	seed := func(m *agentv1.StatsResponse) {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	seed(&agentv1.StatsResponse{})
	seed(&agentv1.StatsResponse{
		CpuNano: 5, MemoryTotalBytes: 100, MemoryAvailableBytes: 200, MemoryWorkingSetBytes: math.MaxInt64, ScratchTotalBytes: -1, ScratchUsedBytes: math.MaxInt64,
		ScratchInodesTotal: 1, ScratchInodesUsed: 2, Network: &agentv1.NetworkStats{Interface: "eth0\x1b", RxBytes: math.MaxUint64},
		Containers: []*agentv1.ContainerStats{{Id: "c-0", CpuNano: -5, MemoryBytes: math.MinInt64, WritableBytes: math.MaxInt64, Pids: math.MaxInt64}, {Id: "other"}},
		Volumes:    []*agentv1.VolumeStats{{Name: "v", UsedBytes: math.MaxInt64, InodesUsed: -1}, {Name: "other"}},
	})
	printable := regexp.MustCompile(`^[[:graph:]]{1,15}$`)
	p := provider.PodMachine{
		Pod: &corev1.Pod{Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c"}},
			Volumes:    []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		}},
		Targets: []provider.Target{{ContainerRef: provider.ContainerRef{Container: "c", ID: "c-0"}, Running: true}},
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m agentv1.StatsResponse
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		out := podStats(p, measured(&m, time.Now(), map[string]sample{}), func(types.UID) (map[string]provider.LogUsage, error) {
			return map[string]provider.LogUsage{"c": {Bytes: math.MaxInt64, Files: 1}}, nil
		})
		if len(out.Containers) > 1 || len(out.VolumeStats) > 1 {
			t.Errorf("%d containers, %d volumes", len(out.Containers), len(out.VolumeStats))
		}
		if out.Network != nil && !printable.MatchString(out.Network.Name) {
			t.Errorf("interface is %q", out.Network.Name)
		}
		text, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		var back any
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		var check func(any)
		check = func(v any) {
			switch v := v.(type) {
			case map[string]any:
				for _, e := range v {
					check(e)
				}
			case []any:
				for _, e := range v {
					check(e)
				}
			case float64:
				if v < 0 || v > math.MaxInt64 {
					t.Errorf("%v in %s", v, text)
				}
			}
		}
		check(back)
	})
}
