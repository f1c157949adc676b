// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

func TestResizeWanted(t *testing.T) {
	mac := &Template{Template: warmpool.Template{GuestOS: vm.GuestMacOS}}
	for _, tt := range []struct {
		name, have, want string
		template         *Template
		changes          int
		says             string
	}{
		{"nothing", `[{"name":"a","resources":{"limits":{"cpu":"1"}}}]`, `[{"name":"a","resources":{"limits":{"cpu":"1000m"}}}]`, nil, 0, ""},
		{"up to the shape", `[{"name":"a","resources":{"limits":{"cpu":"1"}}}]`, `[{"name":"a","resources":{"limits":{"cpu":"2"}}}]`, nil, 1, ""},
		{"beyond the shape", `[{"name":"a","resources":{"limits":{"cpu":"1"}}}]`, `[{"name":"a","resources":{"limits":{"cpu":"2001m"}}}]`, nil, 0, "cpu, requested: 2001, capacity: 2000"},
		{"two of them together", `[{"name":"a","resources":{"requests":{"memory":"100Mi"}}},{"name":"b","resources":{"requests":{"memory":"100Mi"}}}]`,
			`[{"name":"a","resources":{"requests":{"memory":"900Mi"}}},{"name":"b","resources":{"requests":{"memory":"900Mi"}}}]`, nil, 0, "memory, requested: 1887436800"},
		{"both change", `[{"name":"a","resources":{"requests":{"memory":"100Mi"}}},{"name":"b","resources":{"requests":{"memory":"100Mi"}}}]`,
			`[{"name":"a","resources":{"requests":{"memory":"200Mi"}}},{"name":"b","resources":{"requests":{"memory":"50Mi"}}}]`, nil, 2, ""},
		{"less of what was too much", `[{"name":"a","resources":{"limits":{"cpu":"9"}}}]`, `[{"name":"a","resources":{"limits":{"cpu":"8"}}}]`, nil, 1, ""},
		{"a sidecar", `[]`, `[]`, nil, 0, ""},
		{"macOS", `[{"name":"a","resources":{"requests":{"cpu":"1"}}}]`, `[{"name":"a","resources":{"requests":{"cpu":"2"}}}]`, mac, 0, "macOS guest"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := planOf(podOf(t, `{"containers":`+tt.have+`}`))
			p.shape, p.template = vm.Shape{VCPUs: 2, MemoryBytes: 1 << 30}, tt.template
			changes, refusal := resizeWanted(podOf(t, `{"containers":`+tt.want+`}`), p)
			if len(changes) != tt.changes || tt.says == "" && refusal != "" || !strings.Contains(refusal, tt.says) {
				t.Errorf("%d changes, %q; want %d, %q", len(changes), refusal, tt.changes, tt.says)
			}
		})
	}
}

func TestRestartsForResize(t *testing.T) {
	resources := func(cpu, memory string) *corev1.ResourceRequirements {
		l := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
		return &corev1.ResourceRequirements{Limits: l}
	}
	memory := &corev1.Container{ResizePolicy: []corev1.ContainerResizePolicy{
		{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.NotRequired}, {ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}}
	from := resources("1", "1Gi")
	for _, tt := range []struct {
		c    *corev1.Container
		to   *corev1.ResourceRequirements
		want bool
	}{
		{memory, resources("2", "1Gi"), false}, {memory, resources("1", "2Gi"), true}, {memory, resources("1000m", "1024Mi"), false}, {&corev1.Container{}, resources("1", "2Gi"), false},
		{memory, &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}, true},
	} {
		if got := restartsForResize(tt.c, from, tt.to); got != tt.want {
			t.Errorf("to %v: restarts %v", tt.to, got)
		}
	}
}

func TestResizeConditions(t *testing.T) {
	s := testState(corev1.RestartPolicyAlways, 3)
	if got := resizeConditions(s); len(got) > 0 {
		t.Errorf("a pod at rest has %v", got)
	}
	small, large := &corev1.ResourceRequirements{}, &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}
	s.resizeRefusal = "too much"
	s.containers[0].resize = resizeState{applied: small, allocated: large}
	s.containers[1].resize = resizeState{applied: small, allocated: large, message: "container b: it uses more"}
	s.containers[2].resize = resizeState{applied: large, allocated: large}
	got := resizeConditions(s)
	if len(got) != 2 || got[0].Type != corev1.PodResizePending || got[0].Reason != corev1.PodReasonInfeasible || got[0].Message != "too much" ||
		got[1].Type != corev1.PodResizeInProgress || got[1].Reason != corev1.PodReasonError || got[1].Message != "container b: it uses more" {
		t.Errorf("conditions are %+v", got)
	}
}

// What was allocated is known to the next process; a record of an earlier version has what the
// pod says.
func TestRecordKeepsAllocation(t *testing.T) {
	r := newRecords(t.TempDir(), durable.Host)
	s := testState(corev1.RestartPolicyAlways, 1)
	s.pod.Spec.Containers = []corev1.Container{{Name: "a", Image: "i"}}
	granted := corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}}
	s.plan.containers[0].spec = withResources(s.plan.containers[0].spec, granted)
	s.containers[0].resize = resizeState{allocated: &granted, applied: &corev1.ResourceRequirements{}}
	if err := r.save(recordOf(s)); err != nil {
		t.Fatal(err)
	}
	recs, faults, err := r.load()
	if err != nil || len(recs) != 1 || len(faults) > 0 {
		t.Fatal(recs, faults)
	}
	e := &environment{log: slog.New(slog.DiscardHandler)}
	rec := recs[0]
	rec.Images = nil
	rec.Pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")} // was wanted meanwhile
	got := e.restoreState(t.Context(), rec, t0)
	if q := got.plan.containers[0].spec.Resources.Limits.Cpu(); q.String() != "250m" || !got.containers[0].resize.pending() {
		t.Errorf("allocated is %s, %+v", q, got.containers[0].resize)
	}
	var old record
	data, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(strings.NewReplacer(`"allocated"`, `"x"`, `"applied"`, `"y"`).Replace(string(data))), &old); err != nil {
		t.Fatal(err)
	}
	got = e.restoreState(t.Context(), &old, t0)
	if q := got.plan.containers[0].spec.Resources.Limits.Cpu(); q.String() != "2" || got.containers[0].resize.pending() {
		t.Errorf("of an old record: allocated is %s, %+v", q, got.containers[0].resize)
	}
}
