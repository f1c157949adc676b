// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// prepare does in a machine what the template's build would have done: it fills the
// template's layer.
func (s *fakeSupply) prepare(ctx context.Context, r provider.MachineRequest, m *fakeMachine) error {
	for _, ref := range r.Template.Images {
		m.images = append(m.images, warmpool.SlotImage{Ref: ref, Digest: digestOf(ref), DiskPath: "/" + digestOf(ref)})
	}
	l := s.lease(r.MachineID, "", m)
	g, err := l.Guest(ctx)
	if err != nil {
		return err
	}
	defer l.client.Close()
	const id = recipe.ContainerPrefix + "setup"
	if _, err := g.Containers.SetupPod(ctx, connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "builder"})); err != nil {
		return err
	}
	if _, err := g.Containers.CreateContainer(ctx, connect.NewRequest(&agentv1.CreateContainerRequest{
		Id: id, Args: []string{"do", "write /prepared by-the-template"}, WritableLayer: recipe.Layer})); err != nil {
		return err
	}
	if _, err := g.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: id})); err != nil {
		return err
	}
	for {
		res, err := g.Containers.ListContainers(ctx, connect.NewRequest(&agentv1.ListContainersRequest{}))
		if err != nil {
			return err
		}
		if slices.ContainsFunc(res.Msg.GetContainers(), func(c *agentv1.ContainerStatus) bool {
			return c.GetId() == id && c.GetState() == agentv1.ContainerState_CONTAINER_STATE_EXITED
		}) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_, err = g.Containers.RemoveContainer(ctx, connect.NewRequest(&agentv1.RemoveContainerRequest{Id: id}))
	return err
}

// fakeTemplates are the templates that the node knows.
type fakeTemplates struct {
	mu    sync.Mutex
	known map[string]provider.Template
	errs  map[string]error
	tell  []func(namespace, name string)
}

func newTemplates(names ...string) *fakeTemplates {
	f := &fakeTemplates{known: map[string]provider.Template{}, errs: map[string]error{}}
	for _, n := range names {
		f.put(n)
	}
	return f
}

func (f *fakeTemplates) put(name string, images ...string) {
	if len(images) == 0 {
		images = []string{"example.test/image", "example.test/side:1"}
	}
	f.mu.Lock()
	f.known["default/"+name] = provider.Template{MilliCPU: 250, Template: warmpool.Template{
		Namespace: "default", Name: name, Revision: "aa", Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}, Images: images}}
	tell := slices.Clone(f.tell)
	f.mu.Unlock()
	for _, t := range tell {
		t("default", name)
	}
}

func (f *fakeTemplates) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, "default/"+name)
}

func (f *fakeTemplates) Template(namespace, name string) (provider.Template, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.errs[namespace+"/"+name]; err != nil {
		return provider.Template{}, err
	}
	t, ok := f.known[namespace+"/"+name]
	if !ok {
		return t, fmt.Errorf("template %s: %w", name, provider.ErrNotFound)
	}
	return t, nil
}

func (f *fakeTemplates) OnChange(tell func(namespace, name string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tell = append(f.tell, tell)
}

// samples counts what is observed.
type samples struct {
	mu    sync.Mutex
	count map[string]int
}

func (s *samples) ObservePhase(p provider.Phase, path string, _ time.Duration) {
	s.add("phase " + string(p) + " " + path)
}
func (s *samples) ObserveMachine(provider.MachineHealth) {}

func (s *samples) ObserveSample(name provider.Sample, took time.Duration) {
	if took < 0 {
		name += " negative"
	}
	s.add("sample " + string(name))
}

func (s *samples) add(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == nil {
		s.count = map[string]int{}
	}
	s.count[key]++
}

func (s *samples) get(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count[key]
}

func templatePod(name, template string, commands ...[]string) *corev1.Pod {
	p := pod(name, commands...)
	p.Annotations = map[string]string{v1alpha1.AnnotationTemplate: template}
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].ImagePullPolicy = corev1.PullAlways
	}
	return p
}

// A pod of a template: no registry is asked, the template's work is in its container, its
// own variables and secrets too.
func TestTemplatePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.images.config = map[string]provider.ImageConfig{digestOf("example.test/image"): {Env: []string{"OF=the-image"}}}
		if _, err := w.client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"k": []byte("from-secret"), "f": []byte("in-a-file\n")}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		templates, seen := newTemplates("app"), &samples{}
		with := func(o *provider.Options) { o.Templates, o.Observer = templates, seen }
		first := w.run(with)
		p := templatePod("warm", "app", []string{"do", "cat /prepared", "env", "cat /secret/f", "hang"}, []string{"do", "cat /prepared", "hang"})
		p.Spec.Containers[1].Image = "example.test/side:1" // not the template's first image: nothing was prepared for it
		c := &p.Spec.Containers[0]
		c.Env = []corev1.EnvVar{{Name: "SECRET", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}}}
		c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), "warm.firkin.dev/default.pool": resource.MustParse("1")}
		c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/secret"}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}}}
		p = w.create(p)
		w.await("warm", "runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		w.eventually("its output is there", func() bool { return strings.Contains(w.log(p), "in-a-file") }, func() string { return w.log(p) })
		text := w.log(p)
		for _, want := range []string{"by-the-template", "SECRET=from-secret", "OF=the-image"} {
			if strings.Count(text, want) != 1 {
				t.Errorf("%q is not once in\n%s", want, text)
			}
		}
		got := w.await("warm", "has started its first", func(p *corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 2 && p.Status.ContainerStatuses[0].State.Running != nil
		})
		if id := got.Status.ContainerStatuses[0].ImageID; id != "example.test/image@"+digestOf("example.test/image") {
			t.Errorf("image id is %q", id)
		}
		if w.images.pulls != 0 {
			t.Errorf("%d pulls", w.images.pulls)
		}
		if !w.events.has("warm", "MachineRestored", "came by warm in") {
			t.Errorf("events:\n%s", w.events)
		}
		r := w.supply.requests[0]
		if r.Template == nil || r.Template.Name != "app" || len(r.Images) != 0 || !slices.Equal(r.Refs, []string{"example.test/image", "example.test/side:1"}) ||
			r.Budget != (provider.Budget{MilliCPU: 350, MemoryBytes: 256 << 20}) || r.Pool != "default/pool" || r.Path != "" {
			t.Errorf("asked for %+v", r)
		}
		w.eventually("all is measured", func() bool {
			return seen.get("sample command_start") >= 2 && seen.get("sample first_stdout_byte") >= 1 && seen.get("sample start_resume_to_first_stdout") == 1
		}, func() string { return fmt.Sprint(seen.count) })

		// Another process adopts it, though the template is gone; the images are the machine's.
		first.stop()
		templates.remove("app")
		w.run(with)
		w.eventually("it is adopted", func() bool { return w.events.has("warm", "MachineAdopted") }, nil)
		got = w.await("warm", "runs", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].State.Running != nil })
		if got.Status.ContainerStatuses[0].RestartCount != 0 || w.supply.acquired != 1 || w.images.pulls != 0 {
			t.Errorf("%d machines, %d pulls, status %+v", w.supply.acquired, w.images.pulls, got.Status)
		}
		w.delete("warm", ptr(int64(1)))
		w.awaitGone("warm")
		w.awaitNothing()
	})
}

func TestMissingTemplateIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	templates := newTemplates()
	with := func(o *provider.Options) { o.Templates = templates }
	first := w.run(with)
	p := pod("waits", []string{"exit", "0"})
	p.Spec.RuntimeClassName = ptr("later")
	w.create(p)
	w.create(templatePod("leaves", "never", []string{"exit", "0"}))
	for _, n := range []string{"waits", "leaves"} {
		got := w.await(n, "says what it waits for", func(p *corev1.Pod) bool { return p.Status.Reason == "TemplateNotFound" })
		if got.Status.Phase != corev1.PodPending || ready(got) || len(got.Status.ContainerStatuses) != 1 || got.Status.ContainerStatuses[0].State.Waiting == nil {
			t.Errorf("status is %+v", got.Status)
		}
		if !w.events.has(n, "Warning", "TemplateNotFound", "SnapshotTemplate") {
			t.Errorf("events:\n%s", w.events)
		}
	}
	if !w.events.has("waits", `"later"`, "spec.runtimeClassName") || !w.events.has("leaves", `"never"`, "annotation firkin.dev/template") {
		t.Errorf("events:\n%s", w.events)
	}
	w.delete("leaves", nil)
	w.awaitGone("leaves")
	first.stop() // the wait survives the process
	w.run(with)
	w.await("waits", "still waits", func(p *corev1.Pod) bool { return p.Status.Reason == "TemplateNotFound" })
	templates.put("later")
	got := w.awaitPhase("waits", corev1.PodSucceeded)
	if got.Status.Reason != "" {
		t.Errorf("status is %+v", got.Status)
	}
	if w.images.pulls != 0 || w.supply.acquired != 1 {
		t.Errorf("%d pulls, %d machines", w.images.pulls, w.supply.acquired)
	}
	w.delete("waits", nil)
	w.awaitNothing()
}

func TestTemplateRefusals(t *testing.T) {
	w := newWorld(t)
	templates := newTemplates("app")
	w.run(func(o *provider.Options) { o.Templates = templates })
	foreign := templatePod("foreign", "app", []string{"exit", "0"})
	foreign.Spec.Containers[0].Image = "example.test/other:7"
	big := templatePod("big", "app", []string{"exit", "0"})
	big.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("200Mi")}
	wide := templatePod("wide", "app", []string{"exit", "0"})
	wide.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}
	odd := templatePod("odd", "app", []string{"exit", "0"})
	odd.Annotations[provider.AnnotationPath] = "teleport"
	for _, tt := range []struct {
		pod    *corev1.Pod
		reason string
		says   []string
	}{
		{foreign, "ImageNotInTemplate", []string{"example.test/other:7", "default/app", "example.test/image, example.test/side:1"}},
		{big, "OutOfmemory", []string{"default/app"}},
		{wide, "OutOfcpu", []string{"default/app"}},
		{odd, provider.ReasonUnsupportedField, []string{provider.AnnotationPath, "teleport", "restore", "cold"}},
	} {
		w.create(tt.pod)
		got := w.awaitPhase(tt.pod.Name, corev1.PodFailed)
		for _, s := range tt.says {
			if got.Status.Reason != tt.reason || !strings.Contains(got.Status.Message, s) || !w.events.has(tt.pod.Name, tt.reason) {
				t.Errorf("%s: %s: %s, want %s: %s", tt.pod.Name, got.Status.Reason, got.Status.Message, tt.reason, s)
			}
		}
	}
	if w.supply.acquired != 0 {
		t.Errorf("%d machines were made", w.supply.acquired)
	}
}

func TestPathAnnotation(t *testing.T) {
	w := newWorld(t)
	templates := newTemplates("app")
	w.run(func(o *provider.Options) { o.Templates = templates })
	for _, path := range []string{"restore", "cold"} {
		p := templatePod(path, "app", []string{"exit", "0"})
		p.Annotations[provider.AnnotationPath] = path
		w.create(p)
		w.awaitPhase(path, corev1.PodSucceeded)
		if !w.events.has(path, "MachineRestored", "came by "+path+" in") {
			t.Errorf("events:\n%s", w.events)
		}
	}
}

// The process dies at the worst moment: the machine of a template is being made, and
// the template goes before the next process comes.
func TestKilledWhileTemplateMachineIsMade(t *testing.T) {
	w := newWorld(t)
	templates := newTemplates("app")
	with := func(o *provider.Options) { o.Templates = templates }
	first := w.run(with)
	asked := make(chan struct{})
	w.supply.setFault(func(ctx context.Context, op string) error {
		if op == "acquired" {
			close(asked)
			<-ctx.Done()
			return errKilled
		}
		return nil
	})
	w.create(templatePod("dies", "app", []string{"exit", "0"}))
	<-asked
	first.stop()
	w.supply.setFault(nil)
	templates.remove("app")
	w.run(with)
	w.awaitPhase("dies", corev1.PodSucceeded)
	if w.supply.acquired != 2 {
		t.Errorf("%d machines were made", w.supply.acquired)
	}
	w.delete("dies", nil)
	w.awaitNothing()
}

// A machine whose images cannot be pinned is given back, and another is asked for.
func TestLeasedImageIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		templates := newTemplates("app")
		w.run(func(o *provider.Options) { o.Templates = templates })
		w.images.mu.Lock()
		w.images.failPins = 1
		w.images.mu.Unlock()
		w.create(templatePod("again", "app", []string{"exit", "0"}))
		w.awaitPhase("again", corev1.PodSucceeded)
		if w.supply.acquired != 2 || !w.events.has("again", "FailedCreatePodSandBox", "images") {
			t.Errorf("%d machines, events:\n%s", w.supply.acquired, w.events)
		}
		w.delete("again", nil)
		w.awaitNothing()
	})
}

// fakePools are the pools of the node.
type fakePools struct {
	mu      sync.Mutex
	pools   []provider.NodePool
	changes chan struct{}
}

func (f *fakePools) Pools() []provider.NodePool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pools)
}

func (f *fakePools) WithheldMacOSGuests() int64 { return 0 }

func (f *fakePools) Changes() <-chan struct{} { return f.changes }

func (f *fakePools) set(pools ...provider.NodePool) {
	f.mu.Lock()
	f.pools = pools
	f.mu.Unlock()
	select {
	case f.changes <- struct{}{}:
	default:
	}
}

// The node's labels and resources follow its pools, and what others wrote stays.
func TestNodeOffersPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pools, templates := &fakePools{changes: make(chan struct{}, 1)}, newTemplates("app")
		w.run(func(o *provider.Options) { o.Pools, o.Templates = pools, templates })
		nodes := w.client.CoreV1().Nodes()
		n, err := nodes.Get(t.Context(), nodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n.Labels["others"] = "label"
		if _, err := nodes.Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		const key = "warm.firkin.dev/default.pool"
		is := func(what, label string, memory int64, units int64) {
			t.Helper()
			w.eventually("the node offers "+what, func() bool {
				n, err := nodes.Get(t.Context(), nodeName, metav1.GetOptions{})
				if err != nil {
					return false
				}
				q, offered := n.Status.Allocatable[key]
				return n.Labels[key] == label && n.Labels["others"] == "label" && n.Labels["kubernetes.io/arch"] == "amd64" &&
					n.Status.Allocatable.Memory().Value() == memory && offered == (units >= 0) && (!offered || q.Value() == units)
			}, func() string {
				n, err := nodes.Get(t.Context(), nodeName, metav1.GetOptions{})
				return fmt.Sprint(n.Labels, n.Status.Allocatable, err)
			})
		}
		pools.set(provider.NodePool{Key: key, Ready: 1, Desired: 1})
		is("a ready pool", "true", 4<<30, -1)
		pools.set(provider.NodePool{Key: key, Ready: 2, Desired: 2, Reserved: true, Each: provider.Budget{MemoryBytes: 1 << 30}})
		is("a reserved pool", "true", 2<<30, 2)
		p := templatePod("holds", "app", []string{"hang"})
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{key: resource.MustParse("1")}
		w.create(p)
		w.await("holds", "is ready", ready)
		pools.set(provider.NodePool{Key: key, Ready: 1, Desired: 2, Reserved: true, Each: provider.Budget{MemoryBytes: 1 << 30}})
		is("the same, though a pod has one", "true", 1<<30, 2)
		w.delete("holds", ptr(int64(0)))
		w.awaitGone("holds")
		pools.set(provider.NodePool{Key: key, Ready: 0, Desired: 2})
		is("nothing ready", "", 4<<30, -1)
		pools.set()
		is("no pool", "", 4<<30, -1)
	})
}
