// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// Pods of a few names are made and deleted at random moments of their lives, with grace, twice,
// and by force: none sticks, none is told to have what another of its name had, and nothing of
// them is left on the host. FIRKIN_DELETES says how many (make churn: 200), FIRKIN_SEED repeats a run.
func TestDeletedInAnyPhase(t *testing.T) {
	const lanes = 4
	cycles := numberFrom(t, "FIRKIN_DELETES", 24)
	seed := numberFrom(t, "FIRKIN_SEED", int(time.Now().Unix()))
	t.Logf("FIRKIN_SEED=%d FIRKIN_DELETES=%d", seed, cycles)
	ns := namespace(t)
	config, err := clientcmd.BuildConfigFromFlags("", plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 100, 100
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	pods := client.CoreV1().Pods(ns)
	churn(t, ns, "first", 1) // what is made once exists then
	before := footprint(t)

	watched, err := pods.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var watching, all sync.WaitGroup
	watching.Go(func() {
		for e := range watched.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok {
				checkOwnContainers(t, p)
			}
		}
	})
	for lane := range lanes {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(seed), uint64(lane)))
			for cycle := lane; cycle < cycles && !t.Failed(); cycle += lanes {
				if err := deleteSomewhere(t.Context(), pods, random, fmt.Sprintf("lane-%d", lane)); err != nil {
					t.Errorf("cycle %d: %v", cycle, err)
				}
			}
		})
	}
	all.Wait()
	watched.Stop()
	watching.Wait()
	asBefore(t, before)
}

// moments are points of a pod's life, told by its object.
var moments = []struct {
	name  string
	there func(*corev1.Pod) bool
}{
	{"made", func(*corev1.Pod) bool { return true }},
	{"bound", func(p *corev1.Pod) bool { return p.Spec.NodeName != "" }},
	{"starting", func(p *corev1.Pod) bool { return len(p.Status.ContainerStatuses) > 0 }},
	{"running", func(p *corev1.Pod) bool { return p.Status.Phase != corev1.PodPending }},
	{"over", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed || len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].RestartCount > 0
	}},
}

// deleteSomewhere is the life of one pod.
func deleteSomewhere(ctx context.Context, pods typedcorev1.PodInterface, random *rand.Rand, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	program := []string{"exec sleep 3600", "exit 3", "trap '' TERM; while true; do sleep 1; done", "sleep 0.3; exit 1"}[random.IntN(4)]
	restart := []corev1.RestartPolicy{corev1.RestartPolicyNever, corev1.RestartPolicyAlways}[random.IntN(2)]
	moment := moments[random.IntN(len(moments))]
	late := time.Duration(random.IntN(400)) * time.Millisecond
	grace := int64(random.IntN(3))
	twice := random.IntN(3) == 0
	what := fmt.Sprintf("pod %s (%q, %s) deleted %s after it was %s, grace %d s, twice: %t", name, program, restart, late, moment.name, grace, twice)

	made, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy: restart, Tolerations: []corev1.Toleration{{Key: "firkin.dev/machine", Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "main", Image: served.Busybox, Command: []string{"sh", "-c", program},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("%s: create: %w", what, err)
	}
	// A moment that does not come, as "over" of one that sleeps, is a moment as well.
	_ = untilPod(ctx, 3*time.Second, pods, made, func(p *corev1.Pod) bool { return p == nil || moment.there(p) })
	<-time.After(late)
	for {
		err := pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &grace, Preconditions: metav1.NewUIDPreconditions(string(made.UID))})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if !twice {
			break
		}
		twice, grace = false, 0 // by force, while the node is at it
		<-time.After(late)
	}
	if err := untilPod(ctx, time.Minute, pods, made, func(p *corev1.Pod) bool { return p == nil }); err != nil {
		return fmt.Errorf("%s: it sticks: %w", what, err)
	}
	return nil
}

// untilPod asks for a pod until it is as wanted; nil is one that is gone, or another of its name.
func untilPod(ctx context.Context, limit time.Duration, pods typedcorev1.PodInterface, of *corev1.Pod, ok func(*corev1.Pod) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		p, err := pods.Get(ctx, of.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && p.UID != of.UID {
			p, err = nil, nil
		}
		if err == nil && ok(p) {
			return nil
		}
		select {
		case <-ctx.Done():
			if p != nil {
				return fmt.Errorf("its status is %+v", p.Status)
			}
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// checkOwnContainers fails the test when a status tells of a container that is another pod's: ids end
// with the pod's UID.
func checkOwnContainers(t *testing.T, p *corev1.Pod) {
	for _, c := range p.Status.ContainerStatuses {
		ids := []string{c.ContainerID}
		for _, state := range []corev1.ContainerState{c.State, c.LastTerminationState} {
			if state.Terminated != nil {
				ids = append(ids, state.Terminated.ContainerID)
			}
		}
		for _, id := range ids {
			if id != "" && !strings.Contains(id, string(p.UID)) {
				t.Errorf("pod %s of UID %s is told to have container %s", p.Name, p.UID, id)
			}
		}
	}
}

func numberFrom(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		return otherwise
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}
