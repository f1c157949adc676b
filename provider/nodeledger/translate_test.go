// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/nodeledger"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

var limits = nodeledger.Limits{ImageSlots: 4}

func templateSpec(change ...func(*v1alpha1.SnapshotTemplateSpec)) v1alpha1.SnapshotTemplateSpec {
	s := v1alpha1.SnapshotTemplateSpec{
		Image: "example.test/app:1", Shape: v1alpha1.MachineShape{CPU: resource.MustParse("250m"), Memory: resource.MustParse("256Mi")},
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func TestTemplateOf(t *testing.T) {
	rich := templateSpec(func(s *v1alpha1.SnapshotTemplateSpec) {
		s.AdditionalImages = []string{"example.test/side:2", "example.test/app:1"}
		s.Shape.CPU = resource.MustParse("1500m")
		s.Env = []v1alpha1.EnvVar{{Name: "A", Value: "b c"}}
		s.Checkout = &v1alpha1.GitCheckout{Repository: "https://example.test/r.git", Ref: "main", Directory: "/src"}
		s.Setup = []v1alpha1.Command{{Command: []string{"make"}, WorkingDir: "/src/x"}}
		s.WarmCache = []v1alpha1.Command{{Command: []string{"cat", "f"}}}
		s.Start = &v1alpha1.Command{Command: []string{"serve"}}
		s.Readiness = &v1alpha1.ReadinessCheck{HTTPGet: &v1alpha1.HTTPGetCheck{Port: 80, Path: "/"}, TimeoutSeconds: 60, PeriodSeconds: 1}
		s.BuildTimeoutSeconds = 1800
	})
	want := provider.Template{MilliCPU: 1500, Template: warmpool.Template{
		Namespace: "team", Name: "app", Revision: "0123456789abcdef", Shape: vm.Shape{VCPUs: 2, MemoryBytes: 256 << 20},
		Images: []string{"example.test/app:1", "example.test/side:2"},
		Recipe: recipe.Recipe{
			Env: []string{"A=b c"}, WorkingDir: "/src", Checkout: &recipe.Checkout{Repository: "https://example.test/r.git", Ref: "main", Directory: "/src"},
			Setup: []recipe.Command{{Args: []string{"make"}, WorkingDir: "/src/x"}}, WarmCache: []recipe.Command{{Args: []string{"cat", "f"}}},
			Start: &recipe.Command{Args: []string{"serve"}}, Readiness: &recipe.Readiness{HTTP: &recipe.HTTP{Port: 80, Path: "/"}, Timeout: time.Minute, Period: time.Second},
			Timeout: 30 * time.Minute,
		},
	}}
	got, err := nodeledger.TemplateOf("team", "app", "0123456789abcdef", &rich, limits)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestTemplateOfMacOS(t *testing.T) {
	mac := templateSpec(func(s *v1alpha1.SnapshotTemplateSpec) {
		s.GuestOS = v1alpha1.GuestMacOS
		s.Shape = v1alpha1.MachineShape{CPU: resource.MustParse("2"), Memory: resource.MustParse("4Gi")}
	})
	got, err := nodeledger.TemplateOf("team", "mac", "0123456789abcdef", &mac, nodeledger.Limits{ImageSlots: 4, MacOSGuests: 2})
	if err != nil || got.GuestOS != vm.GuestMacOS {
		t.Fatalf("guest is %q, %v", got.GuestOS, err)
	}
	for _, tt := range []struct {
		says   string
		change func(*v1alpha1.SnapshotTemplateSpec)
		limits nodeledger.Limits
	}{
		{"runs no macOS guests", func(*v1alpha1.SnapshotTemplateSpec) {}, limits},
		{"additionalImages", func(s *v1alpha1.SnapshotTemplateSpec) { s.AdditionalImages = []string{"b"} }, nodeledger.Limits{ImageSlots: 4, MacOSGuests: 2}},
		{"at least 2 CPUs", func(s *v1alpha1.SnapshotTemplateSpec) { s.Shape.CPU = resource.MustParse("1") }, nodeledger.Limits{ImageSlots: 4, MacOSGuests: 2}},
		{"4 Gi", func(s *v1alpha1.SnapshotTemplateSpec) { s.Shape.Memory = resource.MustParse("2Gi") }, nodeledger.Limits{ImageSlots: 4, MacOSGuests: 2}},
		{"guestOS", func(s *v1alpha1.SnapshotTemplateSpec) { s.GuestOS = "plan9" }, limits},
	} {
		spec := mac.DeepCopy()
		tt.change(spec)
		if _, err := nodeledger.TemplateOf("team", "mac", "0123456789abcdef", spec, tt.limits); !errors.Is(err, provider.ErrInvalidTemplate) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("error is %v, want one that says %q", err, tt.says)
		}
	}
}

func TestTemplateOfRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*v1alpha1.SnapshotTemplateSpec)
		says   string
	}{
		{"no image", func(s *v1alpha1.SnapshotTemplateSpec) { s.Image = "" }, "image"},
		{"option as image", func(s *v1alpha1.SnapshotTemplateSpec) { s.Image = "--x" }, "image"},
		{"image with a space", func(s *v1alpha1.SnapshotTemplateSpec) { s.AdditionalImages = []string{"a b"} }, "image"},
		{"long image", func(s *v1alpha1.SnapshotTemplateSpec) { s.Image = strings.Repeat("a", 513) }, "image"},
		{"too many images", func(s *v1alpha1.SnapshotTemplateSpec) { s.AdditionalImages = []string{"a", "b", "c", "d"} }, "4 image slots"},
		{"no CPU", func(s *v1alpha1.SnapshotTemplateSpec) { s.Shape.CPU = resource.Quantity{} }, "shape.cpu"},
		{"negative CPU", func(s *v1alpha1.SnapshotTemplateSpec) { s.Shape.CPU = resource.MustParse("-1") }, "shape.cpu"},
		{"absurd CPU", func(s *v1alpha1.SnapshotTemplateSpec) { s.Shape.CPU = resource.MustParse("1e300") }, "shape.cpu"},
		{"too little memory", func(s *v1alpha1.SnapshotTemplateSpec) { s.Shape.Memory = resource.MustParse("2Mi") }, "shape"},
		{"absurd memory", func(s *v1alpha1.SnapshotTemplateSpec) { s.Shape.Memory = resource.MustParse("1e300") }, "shape.memory"},
		{"odd memory", func(s *v1alpha1.SnapshotTemplateSpec) { s.Shape.Memory = resource.MustParse("257Mi") }, "multiple of 2 MiB"},
		{"negative timeout", func(s *v1alpha1.SnapshotTemplateSpec) { s.BuildTimeoutSeconds = -1 }, "timeout"},
		{"absurd timeout", func(s *v1alpha1.SnapshotTemplateSpec) { s.BuildTimeoutSeconds = math.MaxInt32 }, "timeout"},
		{"no check in readiness", func(s *v1alpha1.SnapshotTemplateSpec) { s.Readiness = &v1alpha1.ReadinessCheck{} }, "readiness"},
		{"two checks in readiness", func(s *v1alpha1.SnapshotTemplateSpec) {
			s.Readiness = &v1alpha1.ReadinessCheck{HTTPGet: &v1alpha1.HTTPGetCheck{Port: 1}, TCPSocket: &v1alpha1.TCPSocketCheck{Port: 1}}
		}, "readiness"},
		{"absurd period", func(s *v1alpha1.SnapshotTemplateSpec) {
			s.Readiness = &v1alpha1.ReadinessCheck{TCPSocket: &v1alpha1.TCPSocketCheck{Port: 1}, PeriodSeconds: math.MaxInt32}
		}, "period"},
		{"too many commands", func(s *v1alpha1.SnapshotTemplateSpec) {
			for range 257 {
				s.Setup = append(s.Setup, v1alpha1.Command{Command: []string{"x"}})
			}
		}, "257"},
		{"too much text", func(s *v1alpha1.SnapshotTemplateSpec) {
			s.Setup = []v1alpha1.Command{{Command: []string{"echo", strings.Repeat("x", 1<<20)}}}
		}, "bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := templateSpec(tt.change)
			_, err := nodeledger.TemplateOf("team", "app", "ab", &s, limits)
			if !errors.Is(err, provider.ErrInvalidTemplate) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want it to name %q", err, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("a status has one line: %q", err)
			}
		})
	}
	for _, revision := range []string{"", "../x", strings.Repeat("a", 65), "ABC"} {
		s := templateSpec()
		if _, err := nodeledger.TemplateOf("team", "app", revision, &s, limits); !errors.Is(err, provider.ErrInvalidTemplate) {
			t.Errorf("revision %q: %v", revision, err)
		}
	}
}

func ledgerSpec(targets ...v1alpha1.PoolTarget) *v1alpha1.NodeLedgerSpec {
	s := &v1alpha1.NodeLedgerSpec{Targets: targets}
	for _, name := range []string{"app", "other"} {
		spec := templateSpec()
		s.Templates = append(s.Templates, v1alpha1.TemplateRevision{Namespace: "team", Name: name, Revision: "aa", Spec: spec})
	}
	s.Templates = append(s.Templates, v1alpha1.TemplateRevision{Namespace: "team", Name: "bad", Revision: "aa"})
	return s
}

func target(pool string, change ...func(*v1alpha1.PoolTarget)) v1alpha1.PoolTarget {
	p := v1alpha1.PoolTarget{Namespace: "team", Pool: pool, Template: "app", Revision: "aa", Replicas: 2, MaxSurge: 1}
	for _, c := range change {
		c(&p)
	}
	return p
}

func TestTargets(t *testing.T) {
	spec := ledgerSpec(
		target("z", func(p *v1alpha1.PoolTarget) {
			p.Priority, p.ReclaimPolicy, p.MaxAge, p.MaxSurge, p.MaxUnavailable = -5, v1alpha1.ReclaimNever, &metav1.Duration{Duration: time.Hour}, 0, 0
		}),
		target("a"), target("a", func(p *v1alpha1.PoolTarget) { p.Replicas = 7 }), // a doubled key: the first counts
	)
	got, faults := nodeledger.Targets(spec, nil, limits)
	if len(faults) != 0 || len(got) != 2 {
		t.Fatalf("%d targets, faults %v", len(got), faults)
	}
	tpl := warmpool.Template{Namespace: "team", Name: "app", Revision: "aa", Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Images: []string{"example.test/app:1"}, Recipe: recipe.Recipe{Timeout: 30 * time.Minute}}
	warm, active := warmpool.Budget{MemoryBytes: 256 << 20}, warmpool.Budget{MilliCPU: 250, MemoryBytes: 256 << 20}
	want := []warmpool.Target{
		{Pool: "team/a", Template: tpl, Desired: 2, Reclaim: warmpool.ReclaimOnDemand, MaxSurge: 1, Warm: warm, Active: active},
		{Pool: "team/z", Template: tpl, Desired: 2, Priority: -5, Reclaim: warmpool.ReclaimNever, MaxAge: time.Hour, MaxSurge: 1, Warm: warm, Active: active},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestTargetsFaults(t *testing.T) {
	for _, tt := range []struct {
		name       string
		change     func(*v1alpha1.PoolTarget)
		ofTemplate bool
		says       string
	}{
		{"negative replicas", func(p *v1alpha1.PoolTarget) { p.Replicas = -1 }, false, "replicas is -1"},
		{"absurd replicas", func(p *v1alpha1.PoolTarget) { p.Replicas = math.MaxInt32 }, false, "replicas"},
		{"negative surge", func(p *v1alpha1.PoolTarget) { p.MaxSurge = -1 }, false, "maxSurge"},
		{"absurd unavailable", func(p *v1alpha1.PoolTarget) { p.MaxUnavailable = math.MaxInt32 }, false, "maxUnavailable"},
		{"unknown policy", func(p *v1alpha1.PoolTarget) { p.ReclaimPolicy = "Sometimes" }, false, "Sometimes"},
		{"age of a nanosecond", func(p *v1alpha1.PoolTarget) { p.MaxAge = &metav1.Duration{Duration: 1} }, false, "maxAge"},
		{"negative age", func(p *v1alpha1.PoolTarget) { p.MaxAge = &metav1.Duration{Duration: -time.Hour} }, false, "maxAge"},
		{"odd name", func(p *v1alpha1.PoolTarget) { p.Pool = "../x" }, false, "name"},
		{"unknown template", func(p *v1alpha1.PoolTarget) { p.Template = "none" }, true, "none"},
		{"unknown revision", func(p *v1alpha1.PoolTarget) { p.Revision = "bb" }, true, "bb"},
		{"invalid template", func(p *v1alpha1.PoolTarget) { p.Template = "bad" }, true, "invalid template"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := ledgerSpec(target("odd", tt.change), target("fine"))
			got, faults := nodeledger.Targets(spec, nil, limits)
			if len(got) != 1 || got[0].Pool != "team/fine" {
				t.Errorf("the other pool does not go on: %v", got)
			}
			if len(faults) != 1 || faults[0].OfTemplate != tt.ofTemplate || !strings.Contains(faults[0].Message, tt.says) {
				t.Errorf("faults %+v, want %q", faults, tt.says)
			}
			// What it had before stays.
			before, _ := nodeledger.Targets(ledgerSpec(target(spec.Targets[0].Pool)), nil, limits)
			got, faults = nodeledger.Targets(spec, before, limits)
			if len(got) != 1+len(before) || len(faults) != 1 {
				t.Errorf("with a former target: %d targets, %d faults", len(got), len(faults))
			}
		})
	}
}

// Whatever the API server sends, the supply gets sane targets, each pool once.
func FuzzTargets(f *testing.F) {
	for _, spec := range []*v1alpha1.NodeLedgerSpec{ledgerSpec(target("a")), ledgerSpec(target("a", func(p *v1alpha1.PoolTarget) { p.Replicas = -1 }))} {
		data, err := json.Marshal(spec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var spec v1alpha1.NodeLedgerSpec
		if json.Unmarshal(data, &spec) != nil {
			return
		}
		targets, faults := nodeledger.Targets(&spec, nil, limits)
		seen := map[string]bool{}
		for _, tg := range targets {
			if seen[tg.Pool] || tg.Desired < 0 || tg.Desired > 1000 || tg.Template.Shape.Validate() != nil || len(tg.Template.Images) > limits.ImageSlots {
				t.Errorf("target %+v", tg)
			}
			seen[tg.Pool] = true
		}
		for _, ft := range faults {
			if seen[ft.Namespace+"/"+ft.Pool] {
				t.Errorf("pool %s is both kept and at fault", ft.Pool)
			}
		}
	})
}
