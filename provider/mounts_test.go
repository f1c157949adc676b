// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// podOf reads a pod's specification.
func podOf(t testing.TB, spec string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "pod", "ns", "uid"
	if err := json.Unmarshal([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestMounts(t *testing.T) {
	const volumes = `"volumes":[{"name":"e","emptyDir":{}},{"name":"cm","configMap":{"name":"c"}},{"name":"i","image":{"reference":"r"}},{"name":"h","hostPath":{"path":"/x"}}]`
	known := map[string]string{"POD": "pod-1", "UP": "a/../b", "ABS": "/etc", "EMPTY": ""}
	slot := int32(3)
	for _, tt := range []struct {
		mount string
		want  *agentv1.Mount
		says  string
	}{
		{`{"name":"e","mountPath":"/m"}`, &agentv1.Mount{Volume: "e", Target: "/m"}, ""},
		{`{"name":"e","mountPath":"/m","subPath":"a/b","readOnly":true}`, &agentv1.Mount{Volume: "e", SubPath: "a/b", Target: "/m", ReadOnly: true}, ""},
		{`{"name":"e","mountPath":"/m","subPathExpr":"logs/$(POD)/$$(POD)"}`, &agentv1.Mount{Volume: "e", SubPath: "logs/pod-1/$(POD)", Target: "/m"}, ""},
		{`{"name":"e","mountPath":"/m","subPathExpr":"$(EMPTY)"}`, &agentv1.Mount{Volume: "e", Target: "/m"}, ""},
		{`{"name":"e","mountPath":"/m","subPathExpr":"$(NONE)"}`, nil, `missing value for "NONE"`},
		{`{"name":"e","mountPath":"/m","subPathExpr":"x$(ABS)"}`, &agentv1.Mount{Volume: "e", SubPath: "x/etc", Target: "/m"}, ""},
		{`{"name":"e","mountPath":"/m","subPathExpr":"$(ABS)"}`, nil, "must not be an absolute path"},
		{`{"name":"e","mountPath":"/m","subPathExpr":"$(UP)"}`, nil, "must not contain '..'"},
		{`{"name":"e","mountPath":"/m","subPath":".."}`, nil, "must not contain '..'"},
		{`{"name":"e","mountPath":"/m","subPath":"..a"}`, &agentv1.Mount{Volume: "e", SubPath: "..a", Target: "/m"}, ""},
		{`{"name":"e","mountPath":"/m","readOnly":true,"recursiveReadOnly":"Enabled"}`, &agentv1.Mount{Volume: "e", Target: "/m", ReadOnly: true, RecursiveReadOnly: true}, ""},
		{`{"name":"e","mountPath":"/m","readOnly":true,"recursiveReadOnly":"IfPossible"}`, &agentv1.Mount{Volume: "e", Target: "/m", ReadOnly: true, RecursiveReadOnly: true}, ""},
		{`{"name":"e","mountPath":"/m","readOnly":true,"recursiveReadOnly":"Disabled"}`, &agentv1.Mount{Volume: "e", Target: "/m", ReadOnly: true}, ""},
		{`{"name":"cm","mountPath":"/m","subPath":"k"}`, &agentv1.Mount{Volume: "cm", SubPath: "k", Target: "/m", ReadOnly: true}, ""},
		{`{"name":"i","mountPath":"/m","subPath":"d"}`, &agentv1.Mount{SubPath: "d", Target: "/m", ReadOnly: true, ImageSlot: &slot}, ""},
		{`{"name":"h","mountPath":"/m"}`, &agentv1.Mount{Volume: "h", SubPath: "content", Target: "/m"}, ""},
		{`{"name":"h","mountPath":"/m","subPath":"d"}`, &agentv1.Mount{Volume: "h", SubPath: "content/d", Target: "/m"}, ""},
		{`{"name":"none","mountPath":"/m"}`, nil, `cannot find volume "none"`},
	} {
		pod := podOf(t, `{"containers":[{"name":"a","volumeMounts":[`+tt.mount+`]}],`+volumes+`}`)
		got, err := mountsOf(pod, &pod.Spec.Containers[0], known, map[string]int{"i": 3})
		switch {
		case tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)):
			t.Errorf("%s: %v, %v; want %q", tt.mount, got, err, tt.says)
		case tt.says == "" && (err != nil || len(got) != 1 || got[0].String() != tt.want.String()):
			t.Errorf("%s: %v, %v; want %v", tt.mount, got, err, tt.want)
		}
	}
	pod := podOf(t, `{"containers":[{"name":"a","volumeMounts":[{"name":"i","mountPath":"/m"}]}],`+volumes+`}`)
	if _, err := mountsOf(pod, &pod.Spec.Containers[0], nil, nil); err == nil {
		t.Error("an image that is not in the machine is mounted")
	}
}

func TestVolumeSpec(t *testing.T) {
	shape := vm.Shape{VCPUs: 1, MemoryBytes: 512 << 20}
	all := shape.MemoryBytes - warmpool.GuestMemoryOverhead
	for _, tt := range []struct {
		volume, limit string
		memory        bool
		size          int64
	}{
		{`{"name":"v","emptyDir":{"sizeLimit":"1Mi"}}`, "", false, 0}, // measured, not a file system of its own
		{`{"name":"v"}`, "", false, 0},
		{`{"name":"v","emptyDir":{"medium":"Memory"}}`, "", true, all},
		{`{"name":"v","emptyDir":{"medium":"Memory","sizeLimit":"1Mi"}}`, "", true, 1 << 20},
		{`{"name":"v","emptyDir":{"medium":"Memory","sizeLimit":"1Ti"}}`, "", true, all},
		{`{"name":"v","emptyDir":{"medium":"Memory"}}`, "64Mi", true, 64 << 20},
		{`{"name":"v","emptyDir":{"medium":"Memory","sizeLimit":"128Mi"}}`, "64Mi", true, 64 << 20},
		{`{"name":"v","configMap":{"name":"c"}}`, "64Mi", true, 0},
		{`{"name":"v","hostPath":{"path":"/x"}}`, "", false, 0},
	} {
		pod := podOf(t, `{"containers":[{"name":"a"}],"volumes":[`+tt.volume+`]}`)
		if tt.limit != "" {
			pod = podOf(t, `{"containers":[{"name":"a","resources":{"limits":{"memory":"`+tt.limit+`"}}}],"volumes":[`+tt.volume+`]}`)
		}
		got := volumeSpec(pod, &pod.Spec.Volumes[0], shape)
		if got.GetMemory() != tt.memory || got.GetSizeLimitBytes() != tt.size {
			t.Errorf("%s with limit %q: %v, want memory %v, %d bytes", tt.volume, tt.limit, got, tt.memory, tt.size)
		}
	}
	pod := podOf(t, `{"volumes":[{"name":"v","image":{"reference":"i"}}]}`)
	if got := volumeSpec(pod, &pod.Spec.Volumes[0], shape); got != nil {
		t.Errorf("an image volume is made: %v", got)
	}
}

// An image volume takes a slot, the same one as a container of the same image.
func TestImageVolumes(t *testing.T) {
	pod := podOf(t, `{"containers":[{"name":"a","image":"app:1","imagePullPolicy":"IfNotPresent","volumeMounts":[{"name":"m","mountPath":"/m"}]},{"name":"b","image":"app:1","imagePullPolicy":"IfNotPresent"}],
		"volumes":[{"name":"same","image":{"reference":"app:1","pullPolicy":"IfNotPresent"}},{"name":"m","image":{"reference":"model:latest"}},{"name":"e","emptyDir":{}}]}`)
	p := planOf(pod)
	model := imageKey{"model:latest", PullAlways}
	if len(p.images) != 2 || p.images[1] != model || len(p.refs()) != 2 {
		t.Fatalf("images are %v", p.images)
	}
	s := &state{pod: pod, plan: p, images: map[imageKey]*imageState{p.images[0]: {image: &Image{Digest: "d0"}}, model: {}}}
	s.containers = []*containerState{{name: "a"}, {name: "b"}}
	s.machine.slots = []string{"d0", "d1"}
	if got := imageVolumeSlots(s); len(got) != 1 || got["same"] != 0 {
		t.Errorf("slots are %v", got)
	}
	s.images[model].reason, s.images[model].message = reasonErrImagePull, "no such image"
	for i, want := range []string{reasonErrImagePull, reasonContainerCreating} {
		if reason, message := waitingFor(s, i, s.containers[i], t0); reason != want || i == 0 && !strings.Contains(message, `volume "m": no such image`) {
			t.Errorf("container %d waits for %s: %s", i, reason, message)
		}
	}
	s.images[model].image = &Image{Digest: "d1"}
	if got := imageVolumeSlots(s); got["m"] != 1 || got["same"] != 0 {
		t.Errorf("slots are %v", got)
	}
	if reason, _ := waitingFor(s, 0, s.containers[0], t0); reason != reasonContainerCreating {
		t.Errorf("it waits for %s", reason)
	}
}

func TestMountStatus(t *testing.T) {
	pod := podOf(t, `{"containers":[{"name":"a","volumeMounts":[{"name":"e","mountPath":"/e"},{"name":"e","mountPath":"/r","readOnly":true},{"name":"e","mountPath":"/rr","readOnly":true,"recursiveReadOnly":"IfPossible"},{"name":"s","mountPath":"/s"}]}],
		"volumes":[{"name":"e","emptyDir":{}},{"name":"s","secret":{"secretName":"s"}}]}`)
	var got []string
	for _, m := range mountStatus(pod, &pod.Spec.Containers[0]) {
		mode := "-"
		if m.RecursiveReadOnly != nil {
			mode = string(*m.RecursiveReadOnly)
		}
		got = append(got, fmt.Sprintf("%s %v %s", m.MountPath, m.ReadOnly, mode))
	}
	if want := "[/e false - /r true Disabled /rr true Enabled /s true -]"; fmt.Sprint(got) != want {
		t.Errorf("status is %v, want %s", got, want)
	}
}

func TestHostPathFaults(t *testing.T) {
	allowed := newHostPaths([]string{"/srv/data", "/opt/", "/srv/data/deep"})
	for path, want := range map[string]string{
		"/srv/data": "/srv/data .", "/srv/data/x": "/srv/data x", "/srv/data/deep/y/": "/srv/data/deep y", "/opt/a/b": "/opt a/b",
		"/srv/database": "", "/srv": "", "/": "", "relative": "", "/srv/data/../x": "", "": "",
	} {
		prefix, rest, ok := allowed.within(path)
		if got := strings.TrimSpace(prefix + " " + rest); got != want || ok != (want != "") {
			t.Errorf("%q is %q, want %q", path, got, want)
		}
	}
	for spec, want := range map[string]string{
		`{"path":"/opt/x"}`:                            "",
		`{"path":"/opt/x","type":"Directory"}`:         "",
		`{"path":"/opt/x","type":"DirectoryOrCreate"}`: "",
		`{"path":"/opt/x","type":"Socket"}`:            "spec.volumes[0].hostPath.type: Socket",
		`{"path":"/opt/x","type":"BlockDevice"}`:       "spec.volumes[0].hostPath.type: BlockDevice",
		`{"path":"/etc"}`:                              "spec.volumes[0].hostPath: the node's own files are not shared",
	} {
		pod := podOf(t, `{"volumes":[{"name":"h","hostPath":`+spec+`}]}`)
		if got := allowed.faults(pod); want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], want)) {
			t.Errorf("%s: %q, want %q", spec, got, want)
		}
		if got := (hostPaths{}).faults(pod); len(got) != 1 || !strings.Contains(got[0], "--allow-host-path") {
			t.Errorf("%s on a node without the flag: %q", spec, got)
		}
	}
}
