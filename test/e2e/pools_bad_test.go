// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// What cannot be is said, where its user looks, with what to do about it; pools beside it
// are filled all the same.
func TestBadTemplates(t *testing.T) {
	ns := poolNamespace(t)
	for name, spec := range map[string]string{
		"fails":   `setup: [{command: [sh, -c, "echo one; echo the cause >&2; exit 3"]}]`,
		"hangs":   "setup: [{command: [sleep, \"3600\"]}]\n  buildTimeoutSeconds: 5",
		"absent":  `setup: [{command: [/no/such/program]}]`,
		"fills":   `setup: [{command: [sh, -c, "i=0; while fallocate -l 1G /big$i; do i=$((i+1)); done; cat /bin/busybox /bin/busybox > /after"]}]`,
		"unready": "start: {command: [sleep, \"3600\"]}\n  readiness: {tcpSocket: {port: 9}, timeoutSeconds: 2}",
		"stops":   `start: {command: [sh, -c, "echo going; exit 0"]}`,
	} {
		apply(t, templateManifest(ns, name, spec))
		apply(t, poolManifest(ns, name, name, 1))
	}
	missing := strings.Replace(templateManifest(ns, "missing", simpleSetup), served.Busybox, served.Address+"/nothing:1", 1)
	apply(t, missing)
	apply(t, poolManifest(ns, "missing", "missing", 1))
	apply(t, poolManifest(ns, "orphan", "no-such-template", 1))
	// The good one is the last to be asked for and does not wait for the others to give up.
	apply(t, templateManifest(ns, "good", simpleSetup))
	apply(t, poolManifest(ns, "good", "good", 1))
	waitPool(t, ns, "good", "is full beside broken ones", full(1))

	for name, want := range map[string][]string{
		"fails":   {"Setup", "exit code 3"},
		"hangs":   {"Setup", "timeout"},
		"absent":  {"Setup", "no such file"},
		"fills":   {"Setup", "disk"},
		"unready": {"Readiness", "not ready within"},
		"stops":   {"Start", "must keep running"},
		"missing": {"Pull", "nothing:1"},
	} {
		template := waitTemplate(t, ns, name, "says what is wrong", func(s *v1alpha1.SnapshotTemplate) bool {
			c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionDegraded)
			return c != nil && c.Status == "True" && s.Status.FailedNodes == 1 && len(s.Status.Failures) == 1
		})
		failure := template.Status.Failures[0]
		said := fmt.Sprintf("%s: %s: %s", failure.Step, failure.Message, failure.Output)
		for _, w := range want {
			if !strings.Contains(strings.ToLower(said), strings.ToLower(w)) {
				t.Errorf("template %s: %q lacks %q", name, said, w)
			}
		}
		t.Logf("template %s: %s | %s", name, said, condition(template.Status.Conditions, v1alpha1.ConditionDegraded))
		if name == "fails" && (failure.Node != node.Name || !strings.Contains(failure.Output, "the cause")) {
			t.Errorf("failure %+v: want the node and the output", failure)
		}
		pool := waitPool(t, ns, name, "says that it cannot be filled", func(p *v1alpha1.WarmPool) bool {
			return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionDegraded)
		})
		if c := condition(pool.Status.Conditions, v1alpha1.ConditionDegraded); !strings.Contains(c, node.Name) {
			t.Errorf("pool %s: %q does not name the node", name, c)
		}
	}
	orphan := waitPool(t, ns, "orphan", "says that its template is missing", func(p *v1alpha1.WarmPool) bool {
		return strings.Contains(condition(p.Status.Conditions, v1alpha1.ConditionDegraded), "no-such-template")
	})
	t.Logf("pool orphan: %s", condition(orphan.Status.Conditions, v1alpha1.ConditionDegraded))

	// A failing template that is mended recovers by itself.
	apply(t, templateManifest(ns, "fails", simpleSetup))
	waitPool(t, ns, "fails", "is full once its template is mended", full(1))
}

// More than the fleet has, and numbers that are none.
func TestAbsurdPools(t *testing.T) {
	ns := poolNamespace(t)
	apply(t, templateManifest(ns, "big", simpleSetup))
	apply(t, poolManifest(ns, "too-many", "big", 5000, "perNode: {max: 1}"))
	pool := waitPool(t, ns, "too-many", "says that the fleet is too small", func(p *v1alpha1.WarmPool) bool {
		return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionDegraded) && p.Status.Desired == 1
	})
	t.Logf("%s", condition(pool.Status.Conditions, v1alpha1.ConditionDegraded))
	for _, bad := range []string{
		poolManifest(ns, "x", "big", -1),
		poolManifest(ns, "x", "big", 2000000000),
		poolManifest(ns, "x", "big", 1, "perNode: {min: 3, max: 2}"),
		templateManifest(ns, "x", "checkout: {repository: \"--upload-pack=evil\", ref: main, directory: /src}"),
		templateManifest(ns, "x", "checkout: {repository: \"https://host/r.git\", ref: \"-b\", directory: /src}"),
		templateManifest(ns, "x", "checkout: {repository: \"https://host/r.git\", ref: main, directory: \"/../etc\"}"),
	} {
		if out, err := tryApply(t, bad); err == nil {
			t.Errorf("accepted:\n%s\n%s", bad, out)
		}
	}
}

// A pod of a template that names another image, or a template that is not there, is told so.
func TestTemplatePodRefused(t *testing.T) {
	ns := poolNamespace(t)
	apply(t, templateManifest(ns, "mine", simpleSetup))
	eventually(t, waitShort, "the runtime class", func() error {
		_, err := tryKubectl(t, "get", "runtimeclass", "mine")
		return err
	})
	other := served.Address + "/other:1"
	apply(t, strings.Replace(templatePod(ns, "foreign", "mine"), `image: "`+served.Busybox, `image: "`+other, 1))
	pod := waitPod(t, ns, "foreign", "is refused", refused)
	if !strings.Contains(pod.Status.Message, other) || !strings.Contains(pod.Status.Message, served.Busybox) {
		t.Errorf("message is %q: want both images", pod.Status.Message)
	}
	annotated := strings.Replace(templatePod(ns, "waits", "mine"), "metadata: {", "metadata: {annotations: {firkin.dev/template: later}, ", 1)
	annotated = strings.Replace(annotated, "  runtimeClassName: mine\n", "", 1)
	apply(t, strings.Replace(annotated, "spec:", "spec:\n  tolerations: [{key: firkin.dev/machine, operator: Exists}]", 1))
	waitEvent(t, ns, "waits", "TemplateNotFound", "later")
	apply(t, templateManifest(ns, "later", simpleSetup))
	waitRunning(t, ns, "waits")
}

// A machine that builds a template is killed: the build fails with a word about it, is
// repeated, and succeeds.
func TestBuilderKilled(t *testing.T) {
	ns := poolNamespace(t)
	before := node.MachinePIDs()
	apply(t, templateManifest(ns, "killed", `setup: [{command: [sh, -c, "sleep 8; mkdir -p /opt; echo prepared > /opt/file"]}]`))
	apply(t, poolManifest(ns, "pool", "killed", 1))
	eventually(t, waitBuild, "a builder", func() error {
		for _, pid := range node.MachinePIDs() {
			if !contains(before, pid) {
				return syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return fmt.Errorf("no new machine")
	})
	template := waitTemplate(t, ns, "killed", "says that the machine died", func(s *v1alpha1.SnapshotTemplate) bool { return len(s.Status.Failures) == 1 })
	t.Logf("%s", template.Status.Failures[0].Message)
	waitPool(t, ns, "pool", "is full after the next try", full(1))
}

func contains(pids []int, pid int) bool {
	for _, p := range pids {
		if p == pid {
			return true
		}
	}
	return false
}
