// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/test/images"
)

// An operator asks what of a host's disk nobody needs and has it removed, beside the
// running node: what pods and pools use is untouched. A snapshot that rots on the disk is
// found before anybody is restored from it, put aside and built anew.
func TestGarbageAndRot(t *testing.T) {
	ns := poolNamespace(t)
	const onNode = "nodeSelector: {kubernetes.io/hostname: mac-gc}"
	n := startOwnNode(t, cluster.NodeOptions{Name: "mac-gc", Args: []string{"--shapes", "1x256Mi", "--scrub-every", "3s"}})
	unused := pushUnused(t)

	apply(t, templateManifest(ns, "kept", simpleSetup))
	apply(t, poolManifest(ns, "pool", "kept", 1, onNode))
	apply(t, templateManifest(ns, "idle", simpleSetup))
	here := func(manifest string) string {
		return strings.Replace(manifest, "  containers:", "  "+onNode+"\n  containers:", 1)
	}
	apply(t, here(podManifest(ns, "running", served.Busybox, "sleep", "3600")))
	apply(t, here(podManifest(ns, "odd", unused, "/nothing")))
	waitPod(t, ns, "odd", "has its image and cannot run it", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].ImageID != "" || p.Status.Phase == corev1.PodFailed
	})
	apply(t, templatePod(ns, "once", "idle", onNode))
	waitRunning(t, ns, "once")
	waitPool(t, ns, "pool", "is full", full(1))
	kubectl(t, "delete", "pod", "odd", "once", "-n", ns, "--grace-period=1", "--timeout=60s")

	// Only told: the image and the snapshot, and nothing that is in use.
	var dry gcReport
	eventually(t, waitShort, "what nobody needs", func() error {
		dry = gc(t, n, "--dry-run")
		if !dry.goes("image", "unused:1") || !dry.goes("snapshot", ns+"/idle") {
			return fmt.Errorf("gc --dry-run says %+v", dry)
		}
		return nil
	})
	if !dry.Node || dry.goes("image", "busybox:1") || dry.goes("snapshot", ns+"/kept") || dry.goes("snapshot", "base") || dry.goes("machine", "") || dry.goes("pod", "") {
		t.Errorf("gc --dry-run would remove what is in use: %+v", dry)
	}
	if again := gc(t, n, "--dry-run"); !again.goes("snapshot", ns+"/idle") {
		t.Errorf("gc --dry-run removed something: %+v", again)
	}
	machines := fmt.Sprint(n.MachinePIDs())
	if done := gc(t, n); !done.goes("image", "unused:1") || !done.goes("snapshot", ns+"/idle") {
		t.Errorf("gc says %+v", done)
	}
	if left := gc(t, n, "--dry-run"); left.goes("", "") || left.has("image", "unused:1") || left.has("snapshot", ns+"/idle") {
		t.Errorf("after gc there is still: %+v", left)
	}
	if out := kubectl(t, "exec", "-n", ns, "running", "--", "echo", "lives"); out != "lives\n" {
		t.Errorf("the running pod says %q", out)
	}
	waitPool(t, ns, "pool", "is untouched", full(1))
	if now := fmt.Sprint(n.MachinePIDs()); now != machines {
		t.Errorf("machines are %s, before they were %s", now, machines)
	}
	if got := metric(t, n, "vk_firkin_gc_removed_total", `kind="image"`); got < 1 {
		t.Errorf("%v images were collected by the metrics", got)
	}

	// One bit of the template's memory, while nobody is restored from it.
	key, instance, memory := templateSnapshot(t, n, ns, "kept")
	info, err := os.Stat(memory)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(memory, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := flipBit(memory, info.Size()); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitBuild, "the snapshot is put aside and built anew", func() error {
		aside, _ := filepath.Glob(filepath.Join(n.StateDir, "snapshots", ".quarantine", key+"-*"))
		if len(aside) == 0 {
			return fmt.Errorf("nothing is in quarantine")
		}
		if _, fresh, _ := tryTemplateSnapshot(n, ns, "kept"); fresh == "" || fresh == instance {
			return fmt.Errorf("its instance is %q, before it was %q", fresh, instance)
		}
		return nil
	})
	eventually(t, waitShort, "an event on the node", func() error {
		out, err := tryKubectl(t, "get", "events", "-A", "--field-selector", "reason=SnapshotQuarantined,involvedObject.name=mac-gc", "-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(out, "scrub") {
			err = fmt.Errorf("events say %q", out)
		}
		return err
	})
	restored := checkouts(t, n, "restore")
	apply(t, strings.Replace(templatePod(ns, "after", "kept", onNode), "metadata: {", `metadata: {annotations: {firkin.dev/path: restore}, `, 1))
	waitRunning(t, ns, "after")
	if got := checkouts(t, n, "restore"); got != restored+1 {
		t.Errorf("%v checkouts by restore, want %v", got, restored+1)
	}
	waitPool(t, ns, "pool", "is full", full(1))
	kubectl(t, "delete", "pods", "--all", "-n", ns, "--grace-period=1", "--timeout=60s")
}

// pushUnused is an image that nothing can be run from.
func pushUnused(t *testing.T) string {
	t.Helper()
	img, err := images.Small(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := served.registries[0].Push("unused:1", img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// gcReport is what `vk-firkin gc -o json` says.
type gcReport struct {
	Node      bool `json:"node"`
	Decisions []struct {
		Kind, Name, Reason string
		Remove             bool
	} `json:"decisions"`
}

// goes tells whether a thing of a kind, with this in its name, goes; empty is any.
func (r gcReport) goes(kind, name string) bool { return r.find(kind, name, true) }

func (r gcReport) has(kind, name string) bool {
	return r.find(kind, name, true) || r.find(kind, name, false)
}

func (r gcReport) find(kind, name string, remove bool) bool {
	for _, d := range r.Decisions {
		if d.Remove == remove && (kind == "" || d.Kind == kind) && strings.Contains(d.Name, name) {
			return true
		}
	}
	return false
}

func gc(t *testing.T, n *cluster.Node, args ...string) (r gcReport) {
	t.Helper()
	args = append([]string{"gc", "--state-dir", n.StateDir, "--cache-dir", n.CacheDir, "--grace", "0s", "-o", "json"}, args...)
	out, err := vkFirkin(t, args...)
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return r
}

func templateSnapshot(t *testing.T, n *cluster.Node, ns, template string) (key, instance, memory string) {
	t.Helper()
	key, instance, memory = tryTemplateSnapshot(n, ns, template)
	if key == "" {
		t.Fatalf("template %s/%s has no snapshot", ns, template)
	}
	return key, instance, memory
}

// tryTemplateSnapshot finds a template's snapshot and the largest of its files.
func tryTemplateSnapshot(n *cluster.Node, ns, template string) (key, instance, memory string) {
	paths, _ := filepath.Glob(filepath.Join(n.StateDir, "snapshots", "*", "manifest.json"))
	for _, path := range paths {
		var m struct {
			Instance string
			Template *struct{ Namespace, Name string }
			Members  []struct{ Name string }
		}
		data, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(data, &m) != nil || m.Template == nil || m.Template.Namespace != ns || m.Template.Name != template {
			continue
		}
		for _, f := range m.Members {
			if filepath.Base(f.Name) == "memory" {
				memory = filepath.Join(filepath.Dir(path), f.Name)
			}
		}
		return filepath.Base(filepath.Dir(path)), m.Instance, memory
	}
	return "", "", ""
}
