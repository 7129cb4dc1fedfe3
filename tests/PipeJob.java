import java.io.BufferedOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.PrintStream;
import java.util.Iterator;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.io.LongWritable;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.mapred.*;
import org.apache.hadoop.util.GenericOptionsParser;
import org.apache.hadoop.util.LineReader;

/**
 * Hadoop Streaming in small, for a Hadoop that comes without it: any command maps, any command
 * reduces, and all between them is Hadoop's: splits, lines, shuffle, counters, output.
 *
 *   java PipeJob [-D name=value]... MAPPER REDUCER OUTPUT INPUT...
 *
 * As in Streaming: the API is org.apache.hadoop.mapred; a child gets lines that end in LF, and each
 * line it writes is `key TAB value`, or all key; the job's settings are in its environment, dots as
 * underscores; `reporter:counter:group,name,amount` on its stderr counts; it must end with code 0;
 * what a reducer without input writes is dropped.
 */
public class PipeJob {
  static final Pattern COUNT = Pattern.compile("reporter:counter:([^,]*),([^,]*),(-?\\d+)\\s*");

  static class Child {
    final Process process;
    final OutputStream stdin;
    Thread out, err;
    volatile Throwable failure;

    Child(JobConf job, String role) {
      // getRaw, as get() would expand a ${name} of the shell
      ProcessBuilder builder = new ProcessBuilder("/bin/sh", "-c", "exec " + job.getRaw(role));
      for (Map.Entry<String, String> setting : job) {
        String name = setting.getKey().replaceAll("[^A-Za-z0-9]", "_");
        builder.environment().put(name, job.get(setting.getKey()));
      }
      try {
        process = builder.start();
      } catch (IOException error) {
        throw new RuntimeException(error);
      }
      stdin = new BufferedOutputStream(process.getOutputStream(), 1 << 17);
    }

    void listen(OutputCollector<Text, Text> output, Reporter reporter) {
      out = lines(process.getInputStream(), line -> {
        int tab = line.find("\t");  // Text is bytes: nothing is decoded
        Text key = new Text(), value = new Text();
        key.set(line.getBytes(), 0, tab < 0 ? line.getLength() : tab);
        if (tab >= 0) value.set(line.getBytes(), tab + 1, line.getLength() - tab - 1);
        output.collect(key, value);
      });
      err = lines(process.getErrorStream(), line -> {
        Matcher count = COUNT.matcher(line.toString());
        if (count.matches())
          reporter.incrCounter(count.group(1), count.group(2), Long.parseLong(count.group(3)));
        else System.err.println(line);
      });
    }

    interface Taker { void take(Text line) throws IOException; }

    Thread lines(InputStream stream, Taker taker) {
      Thread thread = new Thread(() -> {
        try (LineReader reader = new LineReader(stream)) {
          for (Text line = new Text(); reader.readLine(line) > 0;) taker.take(line);
        } catch (Throwable error) {
          failure = error;
        }
      });
      thread.start();
      return thread;
    }

    void put(Text text, char end) throws IOException {
      try {
        stdin.write(text.getBytes(), 0, text.getLength());
        stdin.write(end);
      } catch (IOException error) {
        finish();  // its exit code says more
        throw error;
      }
    }

    void finish() throws IOException {
      try {
        stdin.close();
      } catch (IOException error) {
        System.err.println("a child did not read all: " + error.getMessage());
      }
      if (out == null) listen((key, value) -> {}, Reporter.NULL);
      try {
        int code = process.waitFor();
        out.join();
        err.join();
        if (code != 0) throw new IOException("a child ended with code " + code);
      } catch (InterruptedException error) {
        throw new IOException(error);
      }
      if (failure != null) throw new IOException(failure);
    }
  }

  public static class PipeMapper implements MapRunnable<LongWritable, Text, Text, Text> {
    Child child;

    public void configure(JobConf job) { child = new Child(job, "pipe.mapper"); }

    public void run(RecordReader<LongWritable, Text> input, OutputCollector<Text, Text> output,
        Reporter reporter) throws IOException {
      child.listen(output, reporter);
      LongWritable offset = input.createKey();
      for (Text line = input.createValue(); input.next(offset, line);) child.put(line, '\n');
      child.finish();
    }
  }

  public static class PipeReducer implements Reducer<Text, Text, Text, Text> {
    Child child;

    public void configure(JobConf job) { child = new Child(job, "pipe.reducer"); }

    public void reduce(Text key, Iterator<Text> values, OutputCollector<Text, Text> output,
        Reporter reporter) throws IOException {
      if (child.out == null) child.listen(output, reporter);
      while (values.hasNext()) {
        child.put(key, '\t');
        child.put(values.next(), '\n');
      }
    }

    public void close() throws IOException { child.finish(); }
  }

  public static void main(String[] arguments) throws Exception {
    PrintStream stdout = System.out;
    System.setOut(System.err);  // Hadoop's log
    JobConf job = new JobConf();
    String[] rest = new GenericOptionsParser(job, arguments).getRemainingArgs();
    job.set("pipe.mapper", rest[0]);
    job.set("pipe.reducer", rest[1]);
    job.setMapRunnerClass(PipeMapper.class);
    job.setReducerClass(PipeReducer.class);
    job.setOutputKeyClass(Text.class);
    job.setOutputValueClass(Text.class);
    FileOutputFormat.setOutputPath(job, new Path(rest[2]));
    for (int i = 3; i < rest.length; i++) FileInputFormat.addInputPath(job, new Path(rest[i]));
    for (Counters.Group group : JobClient.runJob(job).getCounters())
      for (Counters.Counter counter : group)
        stdout.println(group.getName() + "\t" + counter.getName() + "\t" + counter.getValue());
  }
}
