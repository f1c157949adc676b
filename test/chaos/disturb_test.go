// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// act does one action.
func (w *world) act(t *testing.T, a Action) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), upTime)
	defer cancel()
	var err error
	switch a.Kind {
	case CreatePod:
		w.born[a.Pod] = born{program: a.Program, always: a.Always, template: a.Template}
		err = w.ask(ctx, func() error {
			_, err := w.kube.CoreV1().Pods(namespace).Create(ctx, w.pod(a), metav1.CreateOptions{})
			return err
		})
	case DeletePod:
		grace := int64(2)
		if a.Force {
			grace = 0
		}
		err = w.ask(ctx, func() error {
			return w.kube.CoreV1().Pods(namespace).Delete(ctx, a.Pod, metav1.DeleteOptions{GracePeriodSeconds: &grace})
		})
	case ScalePool:
		w.replicas[a.Template] = a.Replicas
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, a.Replicas)
		err = w.ask(ctx, func() error { return w.objects.Patch(ctx, pool(a.Template, 0), mergePatch(patch)) })
	case ChangeTemplate:
		w.revisions[a.Template] = a.Revision
		patch := fmt.Appendf(nil, `{"spec":{"setup":[{"command":["sh","-c",%q]}]}}`, setupOf(a.Template, a.Revision))
		err = w.ask(ctx, func() error { return w.objects.Patch(ctx, template(w.image, a.Template, 0), mergePatch(patch)) })
	case KillMachine:
		w.killMachine(a.Pick)
	case KillNode:
		w.nodeUp = false
		w.nodesKilled++
		w.node.Kill()
	case TerminateNode:
		w.nodeUp = false
		err = w.node.Terminate(ctx)
	case StartNode:
		w.nodeUp = true
		err = w.node.Launch()
	case KillController:
		w.controllerUp = false
		w.controller.Kill()
	case StartController:
		w.controllerUp = true
		err = w.controller.Start(ctx)
	case KillAPI:
		w.apiUp = false
		w.plane.Kill()
	case StartAPI:
		err = w.startAPI(ctx)
	case Rest: // the caller's
	}
	if err != nil {
		t.Errorf("%v: %v", a, err)
	}
}

// ask asks the API server, again when it cannot answer yet: one that was just started admits
// nothing before it has read what its rules are about. An answer is an answer, also the one to
// a request whose first answer was lost.
func (w *world) ask(ctx context.Context, request func() error) error {
	for first := true; ; first = false {
		err := request()
		switch {
		case err == nil, !first && (apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)):
			return nil
		case apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err), apierrors.IsInvalid(err), ctx.Err() != nil:
			return err
		}
		w.note("   asked again: %v", err)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func mergePatch(data []byte) ctrl.Patch { return ctrl.RawPatch(types.MergePatchType, data) }

// startAPI starts the control plane again. What was killed may still hold its port or its data
// for a moment.
func (w *world) startAPI(ctx context.Context) error {
	for {
		err := w.plane.Start(ctx)
		if err == nil || ctx.Err() != nil {
			w.apiUp = err == nil
			return err
		}
		w.note("the control plane did not start, again: %v", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// watch checks what must hold at any time, and starts a controller that has ended for want of
// an API server, as a Deployment would.
func (w *world) watch(t *testing.T) {
	t.Helper()
	if w.nodeUp {
		select {
		case <-w.node.Exited():
			t.Errorf("the node process has ended by itself:\n%s", tail(w.node.LogPath, 15))
		default:
		}
	}
	if w.controllerUp && w.apiUp {
		select {
		case <-w.controller.Exited():
			w.note("the controller has ended by itself and is started again: %s", tail(w.controller.LogPath, 1))
			ctx, cancel := context.WithTimeout(t.Context(), upTime)
			defer cancel()
			if err := w.controller.Start(ctx); err != nil {
				t.Error(err)
			}
		default:
		}
	}
}

// restore starts what is down.
func (w *world) restore(t *testing.T) {
	t.Helper()
	for _, part := range []struct {
		up   bool
		kind Kind
	}{{w.apiUp, StartAPI}, {w.nodeUp, StartNode}, {w.controllerUp, StartController}} {
		if !part.up {
			w.note("%s", part.kind)
			w.act(t, Action{Kind: part.kind})
		}
	}
}

// killMachine kills the process of one of the machines there are: of a pod, of a pool, or one
// that is being made.
func (w *world) killMachine(pick uint32) {
	machines := w.node.Machines()
	if len(machines) == 0 {
		w.note("   there is none, of %d processes", len(w.node.MachinePIDs()))
		return
	}
	ids := slices.Sorted(maps.Keys(machines))
	id := ids[int(pick)%len(ids)]
	w.killed[id] = true
	w.bereave()
	_ = syscall.Kill(machines[id], syscall.SIGKILL)
	w.bereave() // it may have been given to a pod meanwhile
	w.note("   killed %s, process %d", id, machines[id])
}

// bereave remembers which pods have a machine that was killed. It reads the node's records as
// text, which holds whatever their format.
func (w *world) bereave() {
	pods, _ := os.ReadDir(filepath.Join(w.node.StateDir, "pods"))
	for _, p := range pods {
		uid := p.Name()
		if w.bereaved[uid] {
			continue
		}
		content, _ := os.ReadFile(filepath.Join(w.node.StateDir, "pods", uid, "pod.json"))
		for id := range w.killed {
			warm, _ := os.ReadFile(filepath.Join(w.node.StateDir, "warm", id+".json"))
			if bytes.Contains(content, []byte(id)) || bytes.Contains(warm, []byte(uid)) {
				w.bereaved[uid] = true
			}
		}
	}
}

func (w *world) pod(a Action) *corev1.Pod {
	none, grace := false, int64(2)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: a.Pod},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &none,
			// Whatever the node controller thinks of a node that is away: it is not to delete what
			// the test asks about.
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			NodeName:    nodeName,
			Containers:  []corev1.Container{{Name: "main", Image: w.image, Command: []string{"sh", "-c", script(a.Program, w.witness.url(a.Pod))}}},
		},
	}
	if a.Always {
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	if a.Template != "" {
		p.Spec.RuntimeClassName = &a.Template
	}
	return p
}

func template(image, name string, revision int) *v1alpha1.SnapshotTemplate {
	return &v1alpha1.SnapshotTemplate{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.SnapshotTemplateSpec{
			Image: image,
			Shape: v1alpha1.MachineShape{CPU: resource.MustParse("50m"), Memory: resource.MustParse("256Mi")},
			Setup: []v1alpha1.Command{{Command: []string{"sh", "-c", setupOf(name, revision)}}},
		},
	}
}

func pool(name string, replicas int32) *v1alpha1.WarmPool {
	return &v1alpha1.WarmPool{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       v1alpha1.WarmPoolSpec{TemplateRef: v1alpha1.LocalTemplateReference{Name: name}, Replicas: &replicas},
	}
}

func tail(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
