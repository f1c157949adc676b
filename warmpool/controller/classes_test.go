// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// TestMacOSClass: the scheduler accounts for a slot and leads to Macs; a template of the
// other guest does not share the class.
func TestMacOSClass(t *testing.T) {
	shape := v1alpha1.MachineShape{CPU: resource.MustParse("4"), Memory: resource.MustParse("8Gi")}
	template := func(namespace string, age int64, guest v1alpha1.GuestOS) *managedTemplate {
		return &managedTemplate{key: Key{namespace, "mac"}, object: &v1alpha1.SnapshotTemplate{
			ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(time.Unix(age, 0))},
			Spec:       v1alpha1.SnapshotTemplateSpec{GuestOS: guest, Shape: shape},
		}}
	}
	older, younger := template("a", 1, v1alpha1.GuestMacOS), template("b", 2, v1alpha1.GuestLinux)
	c := planClasses(map[Key]*managedTemplate{older.key: older, younger.key: younger}, nil)
	if len(c.create) != 1 || c.conflicts[younger.key] == "" {
		t.Fatalf("changes are %+v", c)
	}
	class := c.create[0]
	slots, memory := class.Overhead.PodFixed["firkin.dev/macos-vm"], class.Overhead.PodFixed["memory"]
	if slots.Value() != 1 || memory.Value() != 8<<30 || class.Scheduling.NodeSelector["firkin.dev/macos-guests"] != "true" || class.Scheduling.NodeSelector["firkin.dev/machine"] != "true" {
		t.Errorf("class is %+v", class)
	}
	if c := planClasses(map[Key]*managedTemplate{older.key: older}, []*nodev1.RuntimeClass{runtimeClass("mac", shape, false)}); len(c.update) != 1 {
		t.Errorf("a template that became macOS: %+v", c)
	}
}

func TestPlanClasses(t *testing.T) {
	shape := func(memory string) v1alpha1.MachineShape {
		return v1alpha1.MachineShape{CPU: resource.MustParse("250m"), Memory: resource.MustParse(memory)}
	}
	type template struct {
		namespace, name, memory string
		age                     int
	}
	foreign := func(name string) *nodev1.RuntimeClass {
		return &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: "runc"}
	}
	handler := runtimeClass("go", shape("1Gi"), false)
	handler.Handler = "other"
	for _, test := range []struct {
		name      string
		templates []template
		existing  []*nodev1.RuntimeClass
		want      string
		conflicts string
	}{
		{"made", []template{{"a", "go", "1Gi", 1}}, nil, "create go", ""},
		{"kept", []template{{"a", "go", "1024Mi", 1}}, []*nodev1.RuntimeClass{runtimeClass("go", shape("1Gi"), false)}, "", ""},
		{"the shape changes", []template{{"a", "go", "2Gi", 1}}, []*nodev1.RuntimeClass{runtimeClass("go", shape("1Gi"), false)}, "update go", ""},
		{"the handler cannot change", []template{{"a", "go", "1Gi", 1}}, []*nodev1.RuntimeClass{handler}, "delete go", ""},
		{"removed with the last template", nil, []*nodev1.RuntimeClass{runtimeClass("go", shape("1Gi"), false)}, "delete go", ""},
		{"another's is left alone", nil, []*nodev1.RuntimeClass{foreign("gvisor")}, "", ""},
		{"another's is a conflict", []template{{"a", "gvisor", "1Gi", 1}}, []*nodev1.RuntimeClass{foreign("gvisor")}, "", "a/gvisor"},
		{"the plain one is no template's", []template{{"a", "firkin", "1Gi", 1}}, nil, "", "a/firkin"},
		{"shared", []template{{"a", "go", "1Gi", 1}, {"b", "go", "1Gi", 2}}, nil, "create go", ""},
		{"the older decides", []template{{"a", "go", "1Gi", 2}, {"b", "go", "2Gi", 1}}, []*nodev1.RuntimeClass{runtimeClass("go", shape("2Gi"), false)}, "", "a/go"},
		{"the older goes", []template{{"a", "go", "1Gi", 2}}, []*nodev1.RuntimeClass{runtimeClass("go", shape("2Gi"), false)}, "update go", ""},
	} {
		templates := map[Key]*managedTemplate{}
		for _, x := range test.templates {
			k := Key{x.namespace, x.name}
			templates[k] = &managedTemplate{key: k, object: &v1alpha1.SnapshotTemplate{
				ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(time.Unix(int64(x.age), 0))},
				Spec:       v1alpha1.SnapshotTemplateSpec{Shape: shape(x.memory)},
			}}
		}
		c := planClasses(templates, test.existing)
		var got []string
		for verb, list := range map[string][]*nodev1.RuntimeClass{"create": c.create, "update": c.update, "delete": c.delete} {
			for _, class := range list {
				got = append(got, verb+" "+class.Name)
			}
		}
		slices.Sort(got)
		if s := strings.Join(got, ", "); s != test.want {
			t.Errorf("%s: %q, want %q", test.name, s, test.want)
		}
		if s := strings.Trim(fmt.Sprint(slices.SortedFunc(maps.Keys(c.conflicts), compareKeys)), "[]"); s != test.conflicts {
			t.Errorf("%s: conflicts %q, want %q", test.name, s, test.conflicts)
		}
		for _, class := range append(c.create, c.update...) {
			if class.Handler != v1alpha1.RuntimeHandler || class.Overhead.PodFixed.Memory().Cmp(templates[Key{"a", "go"}].object.Spec.Shape.Memory) != 0 {
				t.Errorf("%s: %+v", test.name, class)
			}
		}
	}
}
