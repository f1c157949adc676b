// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
)

// What a node with idle pods may cost, and how old what it says may be.
const (
	maxIdlePercent = 2.0 // of one core
	maxStatusAge   = 250 * time.Millisecond
)

const (
	// settle is for what follows a start: first reports, scrapes, the pages of the runtime's collector.
	settle = 30 * time.Second
	// observed is how long the idle node is watched: several of its slowest rounds, which come
	// every ten seconds.
	observed = 60 * time.Second
)

// Events that a pod's status has to follow.
const (
	eventStarted = "a container speaks, Running"
	eventEnded   = "a container ends, Terminated"
	eventLost    = "a machine is killed, not Ready"
)

var events = []string{eventStarted, eventEnded, eventLost}

// rest is what a node at rest does.
type rest struct {
	pods int
	// percent of one core that the node process took, and all of its machines.
	percent, machines float64
	// ages of a status when it arrived at a client, by the event.
	ages map[string][]time.Duration
}

// measureRest starts idle pods, looks at what the node costs with them, and how fast the status of
// others follows beside them.
func (b *bench) measureRest(ctx context.Context, idle, samples int) (rest, error) {
	if b.fleet.node == nil {
		return rest{}, errors.New("the cost of a node is measured on one of its own: not with --kubeconfig")
	}
	r := rest{pods: idle, ages: map[string][]time.Duration{}}
	fmt.Fprintf(b.log, "Starting %d pods\n", idle)
	var names []string
	for i := range idle {
		names = append(names, fmt.Sprintf("idle-%d", i))
		if _, err := b.kube.CoreV1().Pods(namespace).Create(ctx, b.plainPod(names[i], "exec sleep 86400"), metav1.CreateOptions{}); err != nil {
			return r, err
		}
	}
	for _, name := range names {
		if err := b.until(ctx, name, isReady); err != nil {
			return r, err
		}
	}
	if err := b.costs(ctx, &r); err != nil {
		return r, err
	}
	for i := range samples + 1 {
		fmt.Fprintf(b.log, "Status, round %d of %d\n", i, samples)
		ages, err := b.statusAges(ctx, fmt.Sprintf("status-%d", i))
		if err != nil {
			return r, err
		}
		for event, age := range ages {
			if i > 0 { // the first round warms the host's own caches
				r.ages[event] = append(r.ages[event], age)
			}
		}
	}
	for _, name := range names {
		if err := b.kube.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return r, err
		}
	}
	return r, nil
}

// costs measures the processor time of the node process and of its machines.
func (b *bench) costs(ctx context.Context, r *rest) error {
	fmt.Fprintf(b.log, "Watching the node for %s, after %s of rest\n", observed, settle)
	if err := after(ctx, settle); err != nil {
		return err
	}
	used := func() (node, machines time.Duration, err error) {
		if node, err = processorTime(b.fleet.node.PID()); err != nil {
			return 0, 0, err
		}
		for _, pid := range b.fleet.node.MachinePIDs() {
			t, err := processorTime(pid)
			if err != nil {
				return 0, 0, err
			}
			machines += t
		}
		return node, machines, nil
	}
	node, machines, err := used()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := after(ctx, observed); err != nil {
		return err
	}
	nodeAfter, machinesAfter, err := used()
	if err != nil {
		return err
	}
	took := time.Since(began)
	r.percent, r.machines = 100*ratio(nodeAfter-node, took), 100*ratio(machinesAfter-machines, took)
	return nil
}

// statusAges runs a pod that ends by itself, and one whose machine is killed.
func (b *bench) statusAges(ctx context.Context, pod string) (map[string]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ages := map[string]time.Duration{}
	// Its last words are written right before it ends.
	run, ended, err := b.observe(ctx, pod, "echo first; sleep 2; echo last", isReady, isTerminated, nil)
	if err != nil {
		return nil, err
	}
	first, last, err := b.spoke(ctx, pod)
	if err != nil {
		return nil, err
	}
	ages[eventStarted], ages[eventEnded] = run.Sub(first), ended.Sub(last)

	var killed time.Time
	_, lost, err := b.observe(ctx, pod+"-lost", "exec sleep 86400", isReady, func(p *corev1.Pod) bool { return !isReady(p) }, func() error {
		pids := b.fleet.node.MachinePIDs()
		killed = time.Now()
		return syscall.Kill(pids[len(pids)-1], syscall.SIGKILL) // the youngest has the highest number, until numbers start anew
	})
	if err != nil {
		return nil, err
	}
	ages[eventLost] = lost.Sub(killed)
	return ages, errors.Join(b.remove(ctx, pod), b.remove(ctx, pod+"-lost"))
}

// observe runs a pod and returns when a client saw it in two states, the second after what
// was done in the first.
func (b *bench) observe(ctx context.Context, pod, script string, one, two func(*corev1.Pod) bool, act func() error) (first, second time.Time, err error) {
	pods := b.kube.CoreV1().Pods(namespace)
	watched, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", pod).String()})
	if err != nil {
		return first, second, err
	}
	defer watched.Stop()
	if _, err := pods.Create(ctx, b.plainPod(pod, script), metav1.CreateOptions{}); err != nil {
		return first, second, err
	}
	if first, err = see(ctx, watched, one); err != nil {
		return first, second, fmt.Errorf("pod %s does not become ready: %w", pod, err)
	}
	if act != nil {
		if err := act(); err != nil {
			return first, second, err
		}
	}
	second, err = see(ctx, watched, two)
	if err != nil {
		err = fmt.Errorf("pod %s does not end: %w", pod, err)
	}
	return first, second, err
}

func see(ctx context.Context, watched watch.Interface, ok func(*corev1.Pod) bool) (time.Time, error) {
	for {
		select {
		case event, open := <-watched.ResultChan():
			now := time.Now()
			if !open {
				return now, errors.New("the watch ended")
			}
			if p, is := event.Object.(*corev1.Pod); is && ok(p) {
				return now, nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%w: %w", errTimeout, ctx.Err())
		}
	}
}

// spoke is when a container wrote its first and its last line, by the machine's clock, which is the host's.
func (b *bench) spoke(ctx context.Context, pod string) (first, last time.Time, err error) {
	log, err := b.kube.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Timestamps: true}).DoRaw(ctx)
	if err != nil {
		return first, last, err
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if len(lines) != 2 {
		return first, last, fmt.Errorf("pod %s wrote %q", pod, log)
	}
	for i, to := range []*time.Time{&first, &last} {
		stamp, _, _ := strings.Cut(lines[i], " ")
		if *to, err = time.Parse(time.RFC3339Nano, stamp); err != nil {
			return first, last, err
		}
	}
	return first, last, nil
}

// plainPod is a pod without a template that runs a script.
func (b *bench) plainPod(name, script string) *corev1.Pod {
	none := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64), AutomountServiceAccountToken: &none,
			Containers: []corev1.Container{{
				Name: "main", Image: b.fleet.image, Command: []string{"/bin/sh", "-c", script},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")}},
			}},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
}

func (b *bench) until(ctx context.Context, pod string, ok func(*corev1.Pod) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		p, err := b.kube.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
		if err == nil && ok(p) {
			return nil
		}
		if perr := pause(ctx); perr != nil {
			return errors.Join(fmt.Errorf("pod %s: %w", pod, perr), err)
		}
	}
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func isTerminated(p *corev1.Pod) bool {
	return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Terminated != nil
}

// processorTime is what a process has used, its threads together (proc(5), Linux only).
func processorTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may have blanks; utime and stime are the 12th and 13th field after it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("process %d has %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100 on every architecture of Linux that Go has
}

func after(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (r rest) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d idle pods\t%% of one core\n", r.pods)
	fmt.Fprintf(w, "node process\t%.2f\t(at most %.0f)\n", r.percent, maxIdlePercent)
	fmt.Fprintf(w, "its machines\t%.2f\t\n\n", r.machines)
	fmt.Fprintf(w, "event until a client sees it\tmedian\tmin\tmax\t(at most %s)\n", ms(maxStatusAge))
	for _, event := range events {
		all := r.ages[event]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", event, ms(median(all)), ms(slices.Min(all)), ms(slices.Max(all)))
	}
	return w.Flush()
}

// verdict is nil if every target is met.
func (r rest) verdict() error {
	var errs []error
	if r.percent >= maxIdlePercent {
		errs = append(errs, fmt.Errorf("the node process takes %.2f %% of a core with %d idle pods, want less than %.0f", r.percent, r.pods, maxIdlePercent))
	}
	for _, event := range events {
		if worst := slices.Max(r.ages[event]); worst > maxStatusAge {
			errs = append(errs, fmt.Errorf("%s: seen %s after it, want at most %s", event, ms(worst), ms(maxStatusAge)))
		}
	}
	return errors.Join(errs...)
}
