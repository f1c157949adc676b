// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// The paths, in the order of the table.
const (
	pathWarm    = "warm"
	pathRestore = "restore"
	pathCold    = "cold"
)

var paths = []string{pathWarm, pathRestore, pathCold}

const (
	namespace = "default"
	name      = "podbench" // of template and pool
	// annotationPath makes a pod's machine come by another path than the best.
	annotationPath = "firkin.dev/path"
	// patience is for a template to be built, or a pod to start, on a busy host.
	patience = 5 * time.Minute
)

// bench is one run.
type bench struct {
	fleet *fleet
	log   io.Writer
	kube  kubernetes.Interface
	pools ctrl.Client
	pods  int
}

func newBench(f *fleet, log io.Writer) (*bench, error) {
	config, err := clientcmd.BuildConfigFromFlags("", f.kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 100, 100
	b := &bench{fleet: f, log: log}
	if b.kube, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	b.pools, err = ctrl.New(config, ctrl.Options{Scheme: scheme})
	return b, err
}

// objects are the template that all pods use, and its pool. The set-up is next to
// nothing: what it would add to a cold boot is no merit of a checkout.
func (b *bench) objects() []ctrl.Object {
	one := int32(1)
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	return []ctrl.Object{
		&v1alpha1.SnapshotTemplate{ObjectMeta: meta, Spec: v1alpha1.SnapshotTemplateSpec{
			Image: b.fleet.image,
			Shape: v1alpha1.MachineShape{CPU: resource.MustParse("100m"), Memory: resource.MustParse("256Mi")},
			Setup: []v1alpha1.Command{{Command: []string{"/bin/sh", "-c", "echo prepared > /prepared"}}},
		}},
		&v1alpha1.WarmPool{ObjectMeta: meta, Spec: v1alpha1.WarmPoolSpec{TemplateRef: v1alpha1.LocalTemplateReference{Name: name}, Replicas: &one}},
	}
}

// measure runs the rounds.
func (b *bench) measure(ctx context.Context, rounds int) (result, error) {
	for _, o := range b.objects() {
		if err := b.pools.Create(ctx, o); err != nil {
			return result{}, fmt.Errorf("create %T: %w", o, err)
		}
	}
	r := result{Samples: rounds, all: map[string][]time.Duration{}}
	for i := range rounds + 1 {
		fmt.Fprintf(b.log, "Round %d of %d\n", i, rounds)
		for j := range paths {
			path := paths[(i+j)%len(paths)] // none always comes after the same other
			took, err := b.start(ctx, path)
			if err != nil {
				return r, fmt.Errorf("pod by %s: %w", path, err)
			}
			if i > 0 { // the first round warms the host's own caches
				r.all[path] = append(r.all[path], took)
			}
		}
	}
	r.Warm, r.Restore, r.Cold = median(r.all[pathWarm]), median(r.all[pathRestore]), median(r.all[pathCold])
	return r, nil
}

// start runs a pod on a quiet node and returns the time from its being bound to its
// first output.
func (b *bench) start(ctx context.Context, path string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := b.quiet(ctx); err != nil {
		return 0, err
	}
	b.pods++
	pod := b.pod(fmt.Sprintf("%s-%d", name, b.pods), path)
	pods := b.kube.CoreV1().Pods(namespace)
	watch, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", pod.Name).String()})
	if err != nil {
		return 0, err
	}
	defer watch.Stop()
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	var bound time.Time
	for running := false; !running; {
		select {
		case event, open := <-watch.ResultChan():
			if !open {
				return 0, fmt.Errorf("watch of pod %s ended", pod.Name)
			}
			p, ok := event.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			if bound.IsZero() && p.Spec.NodeName != "" {
				bound = time.Now()
			}
			if p.Status.Phase == corev1.PodFailed {
				return 0, fmt.Errorf("it failed: %s %s", p.Status.Reason, p.Status.Message)
			}
			running = p.Status.Phase == corev1.PodRunning
		case <-ctx.Done():
			return 0, fmt.Errorf("pod %s is not running: %w", pod.Name, ctx.Err())
		}
	}
	spoke, err := b.firstOutput(ctx, pod.Name)
	if err != nil {
		return 0, err
	}
	if err := b.came(ctx, pod.Name, path); err != nil {
		return 0, err
	}
	return spoke.Sub(bound), b.remove(ctx, pod.Name)
}

func (b *bench) pod(podName, path string) *corev1.Pod {
	class := name
	none := false
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: podName},
		Spec: corev1.PodSpec{
			RuntimeClassName: &class, RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64),
			AutomountServiceAccountToken: &none,
			Containers: []corev1.Container{{
				Name: "main", Image: b.fleet.image, Command: []string{"/bin/sh", "-c", "cat /prepared; exec sleep 3600"},
			}},
		},
	}
	if path != pathWarm {
		p.Annotations = map[string]string{annotationPath: path}
	}
	return p
}

// firstOutput is when the process wrote its first line, by the machine's clock, which the
// host set when it handed the machine out.
func (b *bench) firstOutput(ctx context.Context, pod string) (time.Time, error) {
	for {
		logs, err := b.kube.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Timestamps: true, Follow: true}).Stream(ctx)
		if err == nil {
			line, err := bufio.NewReader(logs).ReadString('\n')
			_ = logs.Close()
			if stamp, text, ok := strings.Cut(strings.TrimSpace(line), " "); err == nil && ok && text == "prepared" {
				return time.Parse(time.RFC3339Nano, stamp)
			}
		}
		if err := pause(ctx); err != nil {
			return time.Time{}, fmt.Errorf("no output: %w", err)
		}
	}
}

// came checks by the pod's event that its machine came by the path that is measured.
func (b *bench) came(ctx context.Context, pod, path string) error {
	for {
		events, err := b.kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=MachineRestored,involvedObject.name=" + pod})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if !strings.Contains(e.Message, " came by "+path+" ") {
				return fmt.Errorf("it did not come by %s: %s", path, e.Message)
			}
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("no event about the machine: %w", err)
		}
	}
}

// quiet waits until the pool is full and nothing is under way.
func (b *bench) quiet(ctx context.Context) error {
	for {
		var pool v1alpha1.WarmPool
		if err := b.pools.Get(ctx, ctrl.ObjectKey{Namespace: namespace, Name: name}, &pool); err != nil {
			return err
		}
		if pool.Status.Ready == 1 && pool.Status.Restoring == 0 && pool.Status.Active == 0 {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("the pool is not full (%+v): %w", pool.Status, err)
		}
	}
}

func (b *bench) remove(ctx context.Context, pod string) error {
	pods := b.kube.CoreV1().Pods(namespace)
	if err := pods.Delete(ctx, pod, metav1.DeleteOptions{}); err != nil {
		return err
	}
	for {
		if _, err := pods.Get(ctx, pod, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("pod %s does not go: %w", pod, err)
		}
	}
}

// cleanUp deletes what measure made, also when it was cut short.
func (b *bench) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, o := range b.objects() {
		if err := b.pools.Delete(ctx, o); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %T: %w", o, err)
		}
	}
	return nil
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errTimeout, ctx.Err())
	case <-time.After(50 * time.Millisecond):
		return nil
	}
}
