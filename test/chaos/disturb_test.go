// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
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
	w.did[a.Kind]++
	ctx, cancel := context.WithTimeout(t.Context(), upTime)
	defer cancel()
	var err error
	switch a.Kind {
	case CreatePod:
		err = w.createPod(ctx, a)
	case DeletePod, EvictPod:
		err = w.deletePod(ctx, a)
	case ScalePool:
		w.replicas[a.Template] = a.Replicas
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, a.Replicas)
		err = w.ask(ctx, func() error { return w.objects.Patch(ctx, pool(a.Template, 0), mergePatch(patch)) })
	case ChangeTemplate:
		err = w.changeTemplate(ctx, a)
	case KillBuild:
		if err = w.changeTemplate(ctx, a); err == nil {
			w.killBuild(t)
		}
	case KillMachine:
		w.killMachine(a.Pick)
	case StopMachine:
		w.stopMachine(a.Pick, a.Left)
	case ContinueMachine:
		w.continueMachines()
	case SilenceAgent:
		w.silenceAgent(a.Pick)
	case KillNode:
		w.killNode()
	case TerminateNode:
		w.nodeUp = false
		err = w.node.Terminate(ctx)
	case StartNode:
		w.nodeUp = true
		err = w.node.Launch()
	case StopNode:
		w.nodeStopped = true
		err = syscall.Kill(w.node.PID(), syscall.SIGSTOP)
	case ContinueNode:
		w.nodeStopped = false
		err = syscall.Kill(w.node.PID(), syscall.SIGCONT)
	case KillController:
		w.killController()
	case StartController:
		w.controllerUp = true
		err = w.controller.Start(ctx)
	case KillAPI:
		w.killAPI()
	case StartAPI:
		err = w.startAPI(ctx)
	case RestartAll:
		err = w.restartAll(ctx, a.Order)
	case FillDisk:
		w.full = append(w.full, window{from: time.Now()})
		err = w.fill()
	case MakeRoom:
		err = w.makeRoom()
	case DamageSnapshot:
		err = w.damageSnapshot(ctx, a.Pick)
	case CollectGarbage:
		err = w.collectGarbage(ctx)
	case Rest: // the caller's
	}
	if err != nil {
		w.fail(t, "%v: %v", a, err)
	}
}

// nothing notes that an action found nothing to do.
func (w *world) nothing(k Kind, why string) {
	w.did[k]--
	w.idle[k]++
	w.note("   nothing to do: %s", why)
}

func (w *world) createPod(ctx context.Context, a Action) error {
	w.born[a.Pod] = born{program: a.Program, always: a.Always, template: a.Template}
	return w.ask(ctx, func() error {
		p, err := w.kube.CoreV1().Pods(namespace).Create(ctx, w.pod(a), metav1.CreateOptions{})
		if err == nil {
			w.uids[a.Pod] = p.UID
		}
		return err
	})
}

// deletePod deletes, or evicts; what the pod has said until then is looked at first.
func (w *world) deletePod(ctx context.Context, a Action) error {
	if err := w.filesWhole(a.Pod, w.uids[a.Pod]); err != nil {
		return err
	}
	grace := int64(2)
	if a.Force {
		grace = 0
	}
	opts := metav1.DeleteOptions{GracePeriodSeconds: &grace}
	return w.ask(ctx, func() error {
		if a.Kind == EvictPod {
			return w.kube.PolicyV1().Evictions(namespace).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: a.Pod}, DeleteOptions: &opts})
		}
		return w.kube.CoreV1().Pods(namespace).Delete(ctx, a.Pod, opts)
	})
}

func (w *world) changeTemplate(ctx context.Context, a Action) error {
	w.revisions[a.Template] = a.Revision
	patch := fmt.Appendf(nil, `{"spec":{"setup":[{"command":["sh","-c",%q]}]}}`, setupOf(a.Template, a.Revision))
	return w.ask(ctx, func() error { return w.objects.Patch(ctx, template(w.image, a.Template, 0), mergePatch(patch)) })
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
			w.fail(t, "the node process has ended by itself:\n%s", tail(w.node.LogPath, 15))
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
				w.fail(t, "%v", err)
			}
		default:
		}
	}
}

// restore gives back what is away.
func (w *world) restore(t *testing.T) {
	t.Helper()
	for _, part := range []struct {
		there bool
		kind  Kind
	}{
		{w.apiUp, StartAPI}, {!w.nodeStopped, ContinueNode}, {w.nodeUp, StartNode}, {w.controllerUp, StartController},
		{len(w.full) == 0 || !w.full[len(w.full)-1].until.IsZero(), MakeRoom}, {false, ContinueMachine},
	} {
		if !part.there {
			w.note("%s", part.kind)
			w.act(t, Action{Kind: part.kind})
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
	if a.Program == Crashing { // which writes what no other one may
		privileged := true
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &privileged}
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
