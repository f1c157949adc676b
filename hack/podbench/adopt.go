// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// maxAdoption is how long a node process may take, from its beginning, until it has all
// machines again.
const maxAdoption = 2 * time.Second

// What machines of idle pods may take while no node process is there, in percent of one core for
// each of them, and how long that is watched. A guest that polls for a host would take a core.
const (
	maxAlonePercent = 10
	alone           = 2 * time.Second
)

// adoption is one restart of the node, by the node's own measure.
type adoption struct {
	took time.Duration
	cpu  time.Duration // processor time that the process had used when that was seen
	// alone is what a machine took before, while no process was there, in percent of one core;
	// zero when the next one began at once.
	alone float64
}

// adopt kills the node process under so many pods, again and again, and measures how long the
// next one takes to have their machines. Somebody watches the pods for all that time.
func adopt(ctx context.Context, stdout, stderr io.Writer, pods, rounds int) error {
	f := &fleet{args: []string{"--shapes", "1x128Mi"}}
	if err := f.start(ctx, stderr); err != nil {
		return err
	}
	defer f.stop()
	config, err := clientcmd.BuildConfigFromFlags("", f.kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 100, 100
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "Starting %d pods\n", pods)
	if err := f.startPods(ctx, client, pods); err != nil {
		return err
	}
	before := f.node.MachinePIDs()
	watch, err := cluster.WatchReady(ctx, client, namespace)
	if err != nil {
		return err
	}
	var all []adoption
	for i := range rounds {
		fmt.Fprintf(stderr, "Kill %d of %d\n", i+1, rounds)
		a, err := f.restart(ctx, i%2 == 0)
		if err != nil {
			return errors.Join(err, watch.Stop())
		}
		fmt.Fprintf(stdout, "%d machines taken over in %s, with %s of processor time", pods, ms(a.took), ms(a.cpu))
		if i%2 == 0 {
			fmt.Fprintf(stdout, "; left alone before, each took %.1f %% of a core", a.alone)
		}
		fmt.Fprintln(stdout)
		all = append(all, a)
	}
	if err := watch.Stop(); err != nil {
		return fmt.Errorf("pods did not stay Ready: %w", err)
	}
	if after := f.node.MachinePIDs(); !slices.Equal(before, after) {
		return fmt.Errorf("machines are processes %v, before %v", after, before)
	}
	return adoptionVerdict(all)
}

func adoptionVerdict(all []adoption) error {
	var errs []error
	for i, a := range all {
		if a.took >= maxAdoption {
			errs = append(errs, fmt.Errorf("restart %d took %s to have all machines again, want less than %s", i+1, ms(a.took), ms(maxAdoption)))
		}
		if a.alone >= maxAlonePercent {
			errs = append(errs, fmt.Errorf("before restart %d each machine took %.1f %% of a core, want less than %d", i+1, a.alone, maxAlonePercent))
		}
	}
	return errors.Join(errs...)
}

// startPods starts pods of the plain image and waits until all are Ready.
func (f *fleet) startPods(ctx context.Context, client kubernetes.Interface, pods int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	none := false
	for i := range pods {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s-%d", name, i)},
			Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: new(int64), AutomountServiceAccountToken: &none, NodeName: f.node.Name,
				Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
				Containers:  []corev1.Container{{Name: "main", Image: f.image, Command: []string{"/bin/sleep", "36000"}}},
			},
		}
		if _, err := client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	for {
		list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			if slices.ContainsFunc(list.Items[i].Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			}) {
				ready++
			}
		}
		if ready == pods {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("%d of %d pods are ready: %w", ready, pods, err)
		}
	}
}

// measureAlone tells what machines take on average while no node process is there, in percent
// of one core.
func (f *fleet) measureAlone(ctx context.Context) (float64, error) {
	machines := f.node.MachinePIDs()
	used := func() (sum time.Duration, err error) {
		for _, pid := range machines {
			t, err := processorTime(pid)
			if err != nil {
				return 0, err
			}
			sum += t
		}
		return sum, nil
	}
	before, err := used()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-time.After(alone):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := used()
	return 100 * float64(after-before) / float64(time.Since(began)) / float64(len(machines)), err
}

// restart kills the node process and starts the next one, at once or a while later.
func (f *fleet) restart(ctx context.Context, later bool) (a adoption, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f.node.Kill()
	if later {
		if a.alone, err = f.measureAlone(ctx); err != nil {
			return a, err
		}
	}
	if err := f.node.Launch(); err != nil {
		return a, err
	}
	const metric, sample = "vk_firkin_sample_seconds", `sample="node_recovery"`
	for {
		// Not answered yet is no failure: the process has just begun.
		if n, found, err := f.node.Metric(ctx, metric+"_count", sample); err == nil && found && n == 1 {
			break
		}
		if err := pause(ctx); err != nil {
			return a, fmt.Errorf("the node does not say that it has its machines again: %w", err)
		}
	}
	cpu, _, err := f.node.Metric(ctx, "process_cpu_seconds_total")
	if err != nil {
		return a, err
	}
	took, _, err := f.node.Metric(ctx, metric+"_sum", sample)
	if err != nil {
		return a, err
	}
	a.took, a.cpu = seconds(took), seconds(cpu)
	return a, f.node.WaitReady(ctx)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
