// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-firkin/vk-firkin/provider"
)

func mount(name, path string) corev1.VolumeMount {
	return corev1.VolumeMount{Name: name, MountPath: path}
}

func hostPath(name, path string, kind corev1.HostPathType) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}}
}

// A host path that the node allows is copied in, and said to be a copy; no link leads out of
// what is allowed, and what is not there keeps the pod waiting and says so.
func TestHostPathIsCopied(t *testing.T) {
	w := newWorld(t)
	base := t.TempDir()
	allowed := filepath.Join(base, "allowed")
	for _, f := range []struct{ name, data string }{{"allowed/dir/f", "from the host"}, {"allowed/file", "a file"}, {"secret", "secret"}} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(base, f.name)), 0o755), os.WriteFile(filepath.Join(base, f.name), []byte(f.data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("../secret", filepath.Join(allowed, "out")), os.Symlink("../..", filepath.Join(allowed, "dir", "up"))); err != nil {
		t.Fatal(err)
	}
	w.run(func(o *provider.Options) { o.HostPaths = []string{allowed} })

	p := pod("copied", []string{"do", "cat /dir/f", "cat /sub/f", "cat /file", "cat /made"})
	p.Spec.Volumes = []corev1.Volume{
		hostPath("dir", allowed+"/dir", corev1.HostPathDirectory), hostPath("file", allowed+"/file", corev1.HostPathFile),
		hostPath("all", allowed, corev1.HostPathUnset), hostPath("made", allowed+"/none", corev1.HostPathFileOrCreate),
	}
	sub := mount("all", "/sub")
	sub.SubPath = "dir"
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{mount("dir", "/dir"), mount("file", "/file"), sub, mount("made", "/made")}
	p = w.create(p)
	w.awaitPhase("copied", corev1.PodSucceeded)
	if text := w.log(p); strings.Count(text, "from the host") != 2 || !strings.Contains(text, "a file") {
		t.Errorf("the container read\n%s", text)
	}
	if !w.events.has("copied", "HostPathCopied", `Volume "dir" is a copy of host path "`+allowed+`/dir": 3 files, 13 bytes`) {
		t.Errorf("no event says that it is a copy:\n%s", w.events)
	}
	if _, err := os.Stat(filepath.Join(allowed, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made on the host: %v", err)
	}

	for name, v := range map[string]corev1.Volume{
		"out":     hostPath("v", allowed+"/out", corev1.HostPathUnset),
		"through": hostPath("v", allowed+"/dir/up/secret", corev1.HostPathUnset),
		"missing": hostPath("v", allowed+"/none", corev1.HostPathDirectory),
		"no-dir":  hostPath("v", allowed+"/file", corev1.HostPathDirectory),
		"no-file": hostPath("v", allowed+"/dir", corev1.HostPathFile),
	} {
		p := pod(name, []string{"cat", "/v"})
		p.Spec.Volumes = []corev1.Volume{v}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{mount("v", "/v")}
		p = w.create(p)
		says := map[string]string{"out": "escapes", "through": "escapes", "missing": "does not exist", "no-dir": "is not a directory", "no-file": "is not a file"}[name]
		w.eventually(name+" is told "+says, func() bool { return w.events.has(name, "FailedMount", says) }, nil)
		if text := w.log(p); text != "" {
			t.Errorf("%s ran and read %q", name, text)
		}
		w.delete(name, ptr(int64(0)))
	}
	refused := pod("refused", []string{"exit", "0"})
	refused.Spec.Volumes = []corev1.Volume{hostPath("v", base+"/secret", corev1.HostPathUnset)}
	w.create(refused)
	got := w.awaitPhase("refused", corev1.PodFailed)
	if got.Status.Reason != provider.ReasonUnsupportedField || !strings.Contains(got.Status.Message, "spec.volumes[0].hostPath: ") || !strings.Contains(got.Status.Message, "--allow-host-path") {
		t.Errorf("status is %s: %s", got.Status.Reason, got.Status.Message)
	}
	for _, n := range []string{"copied", "refused"} {
		w.delete(n, nil)
	}
	w.awaitNothing()
}

// An image volume is pulled like a container's image, and its failure is the container's.
func TestImageVolumeIsPulled(t *testing.T) {
	w := newWorld(t)
	w.images.fail = func(ref string) error {
		if ref == "missing" {
			return errors.New("not found")
		}
		return nil
	}
	w.run()
	image := func(name, ref string) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: ref, PullPolicy: corev1.PullIfNotPresent}}}
	}
	p := pod("data", []string{"hang"})
	p.Spec.Volumes = []corev1.Volume{image("m", "missing"), image("ok", "example.test/data")}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{mount("m", "/m")}
	w.create(p)
	w.await("data", "waits for its image", func(p *corev1.Pod) bool {
		if len(p.Status.ContainerStatuses) != 1 || p.Status.ContainerStatuses[0].State.Waiting == nil {
			return false
		}
		waiting := p.Status.ContainerStatuses[0].State.Waiting
		return strings.HasPrefix(waiting.Reason, "ErrImagePull") && strings.Contains(waiting.Message, `volume "m": not found`)
	})
	if !w.events.has("data", "Failed", `Failed to pull image "missing": not found`) {
		t.Errorf("no event tells of the image:\n%s", w.events)
	}
	w.delete("data", ptr(int64(0)))
	w.awaitNothing()

	w.images.mu.Lock()
	w.images.fail = nil
	w.images.mu.Unlock()
	p = pod("slots", []string{"hang"}, []string{"hang"})
	p.Spec.Volumes = []corev1.Volume{image("a", "example.test/image"), image("b", "example.test/data"), image("c", "example.test/data")}
	w.create(p)
	w.eventually("a machine was asked for", func() bool {
		w.supply.mu.Lock()
		defer w.supply.mu.Unlock()
		n := len(w.supply.requests)
		return n > 0 && len(w.supply.requests[n-1].Images) == 2 // equal images have one slot
	}, nil)
	w.delete("slots", ptr(int64(0)))

	p = pod("many", []string{"hang"})
	for _, name := range []string{"a", "b", "c", "d"} {
		p.Spec.Volumes = append(p.Spec.Volumes, image(name, "example.test/"+name))
	}
	w.create(p)
	if got := w.awaitPhase("many", corev1.PodFailed); !strings.Contains(got.Status.Message, "5 different images, a machine has 4 image slots") {
		t.Errorf("status is %s", got.Status.Message)
	}
}

func cpu(request, limit string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(request)}, Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(limit)}}
}

// resize changes the resources of a pod's first container, as the resize subresource does.
func (w *world) resize(name string, r corev1.ResourceRequirements) {
	w.t.Helper()
	w.api.Lock()
	defer w.api.Unlock()
	gvr := corev1.SchemeGroupVersion.WithResource("pods")
	obj, err := w.client.Tracker().Get(gvr, "default", name)
	if err != nil {
		w.t.Fatal(err)
	}
	p := obj.(*corev1.Pod).DeepCopy()
	p.Spec.Containers[0].Resources = r
	p.Generation++
	w.version(p)
	if err := w.client.Tracker().Update(gvr, p, "default"); err != nil {
		w.t.Fatal(err)
	}
}

func conditionOf(p *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == kind {
			return c
		}
	}
	return nil
}

func cpuLimit(r *corev1.ResourceRequirements) string {
	if r == nil {
		return ""
	}
	return r.Limits.Cpu().String()
}

// A resize that the machine's shape cannot hold is infeasible; one that restarts the container
// does so once; what is allocated is known to the next process, which also sees what was
// wanted while none ran.
func TestResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		node := w.run()
		p := pod("small", []string{"graceful", "0"})
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
		p.Spec.Containers[0].Resources = cpu("100m", "200m")
		p.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.RestartContainer}}
		w.create(p)
		w.await("small", "is ready with its resources", func(p *corev1.Pod) bool {
			return ready(p) && cpuLimit(p.Status.ContainerStatuses[0].Resources) == "200m" && p.Status.ContainerStatuses[0].AllocatedResources.Cpu().String() == "100m"
		})

		w.resize("small", cpu("100m", "5")) // the fake machine has one processor
		got := w.await("small", "says that it cannot", func(p *corev1.Pod) bool { return conditionOf(p, corev1.PodResizePending) != nil })
		if c := conditionOf(got, corev1.PodResizePending); c.Reason != corev1.PodReasonInfeasible || c.Status != corev1.ConditionTrue || !strings.Contains(c.Message, "cpu, requested: 5000, capacity: 1000") {
			t.Errorf("condition is %+v", c)
		}
		if st := got.Status.ContainerStatuses[0]; cpuLimit(st.Resources) != "200m" || st.RestartCount != 0 || !ready(got) {
			t.Errorf("status is %+v", got.Status)
		}

		w.resize("small", cpu("200m", "300m"))
		changed := func(limit string, restarts int32) func(*corev1.Pod) bool {
			return func(p *corev1.Pod) bool {
				st := p.Status.ContainerStatuses[0]
				return ready(p) && cpuLimit(st.Resources) == limit && st.RestartCount == restarts &&
					conditionOf(p, corev1.PodResizePending) == nil && conditionOf(p, corev1.PodResizeInProgress) == nil
			}
		}
		w.await("small", "was restarted with new resources", changed("300m", 1))
		for _, reason := range []string{"ResizeInfeasible", "ResizeStarted", "ResizeCompleted"} {
			if !w.events.has("small", reason) {
				t.Errorf("no event %s:\n%s", reason, w.events)
			}
		}

		node.stop()
		w.resize("small", cpu("200m", "400m"))
		w.run()
		if got := w.await("small", "has what was wanted meanwhile", changed("400m", 2)); got.Status.ContainerStatuses[0].AllocatedResources.Cpu().String() != "200m" {
			t.Errorf("status is %+v", got.Status)
		}
		w.delete("small", ptr(int64(0)))
		w.awaitNothing()
	})
}
